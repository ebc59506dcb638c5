"""A speedrun: one recipe trained with several seeds, its time and cost, and its line in the table of records."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from spikerate.models import body_of, branch_macs, step_macs
from spikerate.runs.audience import Audience, Nobody
from spikerate.runs.config import Run
from spikerate.runs.estimate import resolution_macs, training_flops
from spikerate.runs.presets import PRESETS
from spikerate.runs.record import RunFolder, check_free
from spikerate.runs.rounds import train_seeds
from spikerate.system.codec import Own, decode, encode
from spikerate.system.files import is_there, parse_json, read_text, write_json

FILE = "speedrun.json"
"""The file by which a folder is recognised as that of a speedrun."""
COLUMNS = (
    "recipe",
    "T",
    "seeds",
    "validation, %",
    "test, %",
    "training, min",
    "with compilation",
    "with validation",
    "PFLOP",
    "spikes an image",
    "device",
    "versions",
    "commit",
    "date",
)
"""The columns of the table of records. Minutes, operations and spikes are means over the seeds."""
_ASIDE = ("seed", "device", "averaging", "data.path", "data.cache", "data.workers", "data.store")
"""Settings that do not change a recipe: which seed, where it runs, and what is only tested."""
_HELD_OUT, _SEEDS = 5000, 3
"""Images that the rules hold out, and the least number of seeds."""


@dataclass(frozen=True)
class Plan:
    """What a speedrun trains.

    Attributes:
        preset: name of the recipe.
        run: its settings; the seed is replaced.
        seeds: the seeds, one run for each.
        command: the command line.
    """

    preset: str
    run: Run
    seeds: tuple[int, ...]
    command: str

    @property
    def recipe(self) -> str:
        """The preset's name, followed by the settings that are not the preset's: "digits-rate (T 2, epochs 5)"."""
        its = PRESETS.get(self.preset)
        then = dict(its.run.settings) if its else dict(self.run.settings)
        changed = [
            f"{name} {value}"
            for name, value in self.run.settings
            if name not in _ASIDE and (name not in then or then[name] != value)
        ]
        return f"{self.preset} ({', '.join(changed)})" if changed else self.preset

    def begin(self, base: Path) -> None:
        """Write the plan to a new folder.

        Raises:
            ValueError: the folder is not empty, or can't be written.
        """
        check_free(base)
        try:
            base.mkdir(parents=True, exist_ok=True)
            told = {"preset": self.preset, "run": encode(self.run), "seeds": list(self.seeds), "command": self.command}
            write_json(base / FILE, told)
        except OSError as error:
            raise ValueError(f"the folder {base} can't be written: {error.strerror}; choose another by --out") from error

    def withdraw(self, base: Path) -> None:
        """Remove the plan and its folder, where no run has begun."""
        with suppress(OSError):  # a folder with more in it, or one that is not ours to remove
            if [entry.name for entry in base.iterdir()] == [FILE]:
                (base / FILE).unlink()
                base.rmdir()

    @classmethod
    def read(cls, base: Path, own: Own = Own()) -> Plan:
        """The plan in the folder of a speedrun.

        Raises:
            ValueError: the folder is none, or the plan is broken, or names the user's own code that is not in `own`.
        """
        if not is_there(base / FILE):
            raise ValueError(f"{base} contains no speedrun (no {FILE}): give the folder that spikerate speedrun has printed")
        try:
            told = parse_json(read_text(base / FILE))
            run: Run = decode(Run, told["run"], own=own)
            seeds = tuple(told["seeds"])
            if not seeds or any(type(seed) is not int for seed in seeds):
                raise ValueError("its seeds are no whole numbers")
            return cls(str(told["preset"]), run, seeds, str(told["command"]))
        except OSError as error:
            raise ValueError(f"{base / FILE} can't be read: {error.strerror}") from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{base / FILE} is no plan of a speedrun: {error}") from error

    def perform(self, base: Path, audience: Audience = Nobody(), save_minutes: float = 10) -> dict[int, RunFolder]:
        """Train the seeds that are not finished, one after the other; each is tested once, at its end.

        Raises:
            as `train_seeds`.
        """
        about = {"preset": self.preset, "command": f"spikerate speedrun --resume {shlex.quote(str(base))}"}
        return train_seeds(self.run, self.seeds, base, about, None, audience, save_minutes)


def rows(plan: Plan, folders: Mapping[int, RunFolder]) -> list[tuple[str, ...]]:
    """The lines of finished runs in the table of records, each a text for each of `COLUMNS`.

    Test-time averaging has a line of its own, with its accuracies and the spikes of all views; the rest is of the training.

    Raises:
        ValueError: a file of a run is missing or broken, or the runs are not finished.
    """
    runs = [(folder.about(), folder.result(), folder.metrics()) for folder in folders.values()]
    if not all(result for _, result, _ in runs):
        raise ValueError("a run of the speedrun is not finished: spikerate speedrun --resume FOLDER continues it")
    abouts, results, metrics = zip(*runs, strict=True)
    spent = {
        name: [sum(r.get(name, 0.0) for r in of) / 60 for of in metrics]
        for name in ("train_seconds", "compile_seconds", "seconds")
    }
    with_compilation = [a + b for a, b in zip(spent["train_seconds"], spent["compile_seconds"], strict=True)]
    minutes = tuple(f"{fmean(values):.1f}" for values in (spent["train_seconds"], with_compilation, spent["seconds"]))
    lines = {plan.recipe: results}
    if plan.run.averaging and all("averaged" in result for result in results):
        lines[f"{plan.recipe}, averaged ({plan.run.averaging})"] = tuple(result["averaged"] for result in results)
    return [
        (
            name,
            plan.run.times.removeprefix("T = "),
            f"{len(runs)} ({', '.join(map(str, folders))})",
            _percent([result["validation_accuracy"] for result in of]),
            _percent([result["test_accuracy"] for result in of]),
            *minutes,
            f"{pflop(plan.run, abouts[0]['data']):.3g}",
            _spikes([result.get("spikes_per_image") for result in of], plan.run),
            *_where(abouts),
        )
        for name, of in lines.items()
    ]


def markdown(row: Sequence[str]) -> str:
    """A row of the table of records as Markdown."""
    return f"| {' | '.join(row)} |"


def against_rules(plan: Plan, folders: Mapping[int, RunFolder]) -> list[str]:
    """What keeps the line of finished runs out of the table of records, by the rules of docs/speedrun.md; [] if nothing.

    Not seen are the rules about choices: what was tuned on what, and what else the machine did.
    """
    data, seeds, found = plan.run.data, plan.seeds, []
    if data.name != "cifar10" or data.subset is not None:
        found.append(f"the data is {data.name}{'' if data.subset is None else ', in part'}, and not all of cifar10 (rule 1)")
    elif data.validation < _HELD_OUT:
        found.append(f"data.validation is {data.validation}, and not {_HELD_OUT:,} (rule 2)")
    if len(seeds) < _SEEDS or seeds != tuple(range(len(seeds))):
        found.append(f"the seeds are {', '.join(map(str, seeds))}, and not 0 to {_SEEDS - 1} or more (rule 4)")
    sources = [folder.about().get("source") or {} for folder in folders.values()]
    if any(source.get("diff") or not source.get("commit") for source in sources):
        found.append("the code is not that of a commit, without changes (rule 5)")
    return found


def pflop(run: Run, data: Mapping[str, Any]) -> float:
    """The operations of all training steps of one run in 10^15, from the entry `data` of its `run.json`."""
    shape, num_classes = tuple(data["shape"]), len(data["classes"])
    with torch.device("meta"):
        network = run.build(num_classes, shape)
    moved = 0 if run.search is None else run.search.differences(network)
    own = step_macs(body_of(network), shape)
    there = resolution_macs(run, shape, num_classes)
    return training_flops(run, own, branch_macs(network, shape), data["sizes"]["train"], moved, there) / 1e15


def _percent(values: Sequence[float | None]) -> str:
    """Mean and standard deviation in percent; "-" where there is no validation set."""
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return f"{fmean(known):.2f}" + (f" ± {stdev(known):.2f}" if len(known) > 1 else "")


def _spikes(values: Sequence[float | None], run: Run) -> str:
    """The mean; "-" of an ANN, or where a run has not counted them."""
    known = [value for value in values if value is not None]
    return f"{fmean(known):,.0f}" if run.spiking and len(known) == len(values) else "-"


def _where(abouts: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    """Device, versions, commit and date of the runs; what differs between them stands side by side."""
    cards = [about["environment"] for about in abouts]
    on_gpu = [card.get("gpus") and about["run"].get("device") != "cpu" for card, about in zip(cards, abouts, strict=True)]
    devices = [
        card["gpus"][0] if gpu else f"{card.get('cpu')}, {card.get('threads')} of {card.get('cores')} cores"
        for card, gpu in zip(cards, on_gpu, strict=True)
    ]
    versions = [f"torch {card['packages'].get('torch')}, Python {card.get('python')}" for card in cards]
    sources = [about.get("source") or {} for about in abouts]
    commits = [f"{(source.get('commit') or '-')[:7]}{' + changes' if source.get('diff') else ''}" for source in sources]
    dates = [str(about.get("started", "-"))[:10] for about in abouts]
    return (_each(devices), _each(versions), _each(commits), _each(dates))


def _each(texts: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
