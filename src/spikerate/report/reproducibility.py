"""The reproducibility card: seven questions that reviews of reproducibility ask, answered from the record of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikerate.data import entry_of
from spikerate.losses import TET, SelfDistillation
from spikerate.rules import BPTT, OTTT, SLTT, RateBP
from spikerate.runs.config import Run
from spikerate.runs.presets import DSPIKE, ESD, PRESETS, RATE
from spikerate.surrogate import Dspike
from spikerate.system.codec import parts_of, path_of

_REFERENCES: dict[type, str] = {
    RateBP: RATE,
    BPTT: "Backpropagation through time with surrogate gradients: Neftci, Mostafa, Zenke; IEEE Signal Process. Mag. 2019",
    SLTT: "Spatial learning through time: Meng et al.; ICCV 2023",
    OTTT: "Online training through time: Xiao et al.; NeurIPS 2022",
    SelfDistillation: ESD,
    TET: "Temporal efficient training: Deng et al.; ICLR 2022",
    Dspike: DSPIKE,
}
_SAMPLES = {"events": "event-camera recordings", "sounds": "recordings of sounds as spikes"}
_CODE = "src/spikerate: rules.py and signal.py (where gradients go), neuron.py, losses.py; in formulas, docs/method.md"


@dataclass(frozen=True)
class Question:
    """A question with its answers, each a name and a text."""

    asks: str
    answers: tuple[tuple[str, str], ...]


def seven_questions(run: Run, about: Mapping[str, Any], seeds: Sequence[int]) -> tuple[Question, ...]:
    """The card of runs that differ only in their seeds.

    Args:
        run: settings of one of them.
        about: the content of its `run.json`.
        seeds: the seeds of all runs.
    """
    data, environment, source = about["data"], about["environment"], dict(about.get("source") or {})
    packages = dict(environment.get("packages") or {})
    sizes = dict(data.get("sizes") or {})
    of_seeds = ", ".join(map(str, sorted(seeds)))
    asked: dict[str, dict[str, Any]] = {
        "What kind of research is it?": {"kind": _kind(run), "runs": f"{len(seeds)}, seed {of_seeds}"},
        "Is there pseudocode, or a reference of the method?": {
            **{f"reference {k}": text for k, text in enumerate(references(run), 1)},
            "rule": run.rule,
            "loss": run.loss,
            "neuron": run.neuron,
            "code": _CODE,
        },
        "Which version of the code?": {
            "spikerate": packages.get("spikerate"),
            "commit": source.get("commit") or "not from a git checkout",
            "changes": f"not committed, sha256 of the diff {source['diff']}" if source.get("diff") else None,
            "licence": "Apache-2.0",
        },
        "Which data sets, under which licences?": {
            "data set": data.get("name"),
            "licence": data.get("licence"),
            "left out": f"{len(data['skipped'])} broken files" if data.get("skipped") else None,
            "noted": "; ".join(map(str, data.get("notes") or [])),
            **{f"sha256 of {name}": value for name, value in dict(data.get("sha256") or {}).items()},
        },
        "How are they split?": {
            "split": data.get("split"),
            **{name.replace("_", " "): f"{n} samples" for name, n in sizes.items()},
            "choice": _choice(sizes),
            "indices": "of every drawn sample, in run.json" if data.get("drawn") else None,
        },
        "On which hardware, with which software?": {
            "processor": environment.get("cpu"),
            "cores, threads in use": f"{environment.get('cores')}, {environment.get('threads')}",
            "memory, GiB": environment.get("memory_gib"),
            "GPUs": environment.get("gpus") or "none",
            "processes": about.get("ranks"),
            "system": environment.get("platform"),
            "Python": environment.get("python"),
            "CUDA, cuDNN": f"{environment['cuda']}, {environment.get('cudnn')}" if environment.get("cuda") else None,
            "float32 products": environment.get("matmul_precision"),
            **packages,
        },
        "With which set-up?": {
            **_preset(run, about.get("preset")),
            **settings(run),
            "seed": of_seeds,
            "weights to start from": _start(about.get("init")),
        },
    }
    return tuple(Question(asks, tuple(_texts(answers))) for asks, answers in asked.items())


def settings(run: Run) -> dict[str, str]:
    """All settings as text, except the seed and the path of the data."""
    return {name: str(value) for name, value in run.settings if name not in ("seed", "data.path")}


def references(run: Run) -> list[str]:
    """The references of the parts of a run's method."""
    parts = [part for one in (run.rule, run.loss, run.neuron) for part in parts_of(one)]
    own = [f"{path}: the user's own code" for part in (*parts, *parts_of(run.model)) if ":" in (path := path_of(part))]
    if not run.spiking:
        return ["Backpropagation in a network without spikes (ANN)", *own]
    return [_REFERENCES[type(part)] for part in parts if type(part) in _REFERENCES] + own


def _kind(run: Run) -> str:
    network = "a spiking neural network" if run.spiking else "an artificial neural network (ANN)"
    samples = _SAMPLES.get(entry_of(run.data).kind, "images")
    return f"empirical, a computational experiment: {network} is trained to classify {samples}, and tested on others"


def _choice(sizes: Mapping[str, Any]) -> str:
    if sizes.get("validation"):
        return "the epoch with the highest validation accuracy; the test set is used once, after training"
    return "the last epoch, as there is no validation set; the test set is used once, after training"


def _start(init: Mapping[str, Any] | None) -> str | None:
    """Where the initial weights came from; None if they were drawn from the seed."""
    if not init:
        return None
    fresh = f"; drawn from the seed: {_text(init['fresh'])}" if init.get("fresh") else ""
    return f"{init.get('path')}, sha256 {init.get('sha256')}{fresh}"


def _preset(run: Run, name: Any) -> dict[str, Any]:
    """The preset's description, and the settings that were changed."""
    if name not in PRESETS:
        return {"preset": name}
    preset = PRESETS[name]
    its = settings(preset.run)
    changed = [f"{field} {value}" for field, value in settings(run).items() if value != its.get(field)]
    return {"preset": f"{name}: {preset.headline}. {preset.differs}", "changed from it": changed or "nothing"}


def _texts(answers: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in answers.items() if value not in (None, "", [], ())]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
