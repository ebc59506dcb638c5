"""What a report tells of runs: gathered from their folders alone, compared where there are several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spikerate.measure.energy import Energy
from spikerate.measure.health import stuck
from spikerate.models import short_path
from spikerate.report import charts
from spikerate.report.charts import Chart, Form, Series, Stat, Strips
from spikerate.report.folders import Finding, Result
from spikerate.report.reproducibility import Question, settings, seven_questions
from spikerate.report.samples import Confusion, Example, confusion, confusion_of_pairs, examples
from spikerate.runs.config import Run
from spikerate.runs.experiment import LARGEST_CONFUSION
from spikerate.runs.presets import headline
from spikerate.runs.record import RUN_FILE, doubt
from spikerate.system import environment


@dataclass(frozen=True)
class _Family:
    """Metrics that share a chart: key in `metrics.jsonl` -> name; a key that ends with * matches several keys."""

    title: str
    form: Form
    names: Mapping[str, str]
    zero: bool = False


_FAMILIES = (
    _Family(
        "Loss",
        "number",
        {"loss": "total", "ce": "cross-entropy", "kl": "distillation", "mse": "pull", "penalty": "firing rates"},
        zero=True,
    ),
    _Family("Accuracy", "share", {"validation": "validation", "accuracy": "training"}),
    _Family("Accuracy of the exits in training", "share", {"accuracy/exit*": "exit ", "accuracy": "final"}),
    _Family("Reliable share", "share", {"reliable": "training samples that an exit gets right"}),
    _Family("Firing rate", "number", {"firing_rate": "of all neurons"}, zero=True),
    _Family("Gradient norm", "number", {"gradient_norm": "mean over the steps"}, zero=True),
    _Family("Temperature of the surrogate", "number", {"temperature": "mean over the layers"}, zero=True),
)
_NOT_DRAWN = (
    "epoch",
    "lr",
    "T",
    "seconds",
    "train_seconds",
    "compile_seconds",
    "search_seconds",
    "similarity",
    "similarity/held",
    "similarity/up",
    "similarity/down",
)
"""Metrics that have no chart. What is in no family and not here is a term of a loss of the user's own."""


@dataclass(frozen=True)
class Layer:
    """The firing rate of a neuron layer, over all time steps and at each, as mean over the runs."""

    name: str
    rate: Stat
    at_step: list[float]
    stuck: str


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds."""

    name: str
    runs: tuple[Finding, ...]

    @property
    def run(self) -> Run:
        """The settings, up to the seed."""
        return self.runs[0].run

    @property
    def seeds(self) -> list[int]:
        return sorted(found.run.seed for found in self.runs)

    @property
    def results(self) -> list[Result]:
        """The results of the finished runs."""
        return [found.result for found in self.runs if found.result]

    @property
    def headline(self) -> str:
        """A description in one line."""
        return headline(str(self.runs[0].about.get("preset")), self.run)

    @property
    def card(self) -> tuple[Question, ...]:
        """The reproducibility card."""
        return seven_questions(self.run, self.runs[0].about, self.seeds)

    @property
    def commands(self) -> list[str]:
        """The commands that repeat the runs; for a run made by `reproduce`, the command of its original."""
        return list(dict.fromkeys(command for found in self.runs if (command := _command(found.about))))

    @property
    def commit(self) -> str | None:
        """The commit of the code, if it is known."""
        return dict(self.runs[0].about.get("source") or {}).get("commit")

    @property
    def changed(self) -> bool:
        """Whether the code had uncommitted changes."""
        return bool(dict(self.runs[0].about.get("source") or {}).get("diff"))

    @property
    def test(self) -> Stat | None:
        """The test accuracy of the finished runs; None if no run is finished."""
        return _stat(result.test for result in self.results)

    @property
    def averaged(self) -> Stat | None:
        """Their test accuracy with test-time averaging; None if no run has done it."""
        return _stat(result.averaged.test if result.averaged else None for result in self.results)

    @property
    def validation(self) -> Stat | None:
        """Their validation accuracy; None if there is no validation set."""
        return _stat(result.validation for result in self.results)

    @property
    def rate(self) -> Stat | None:
        """Their firing rate."""
        return _stat(result.rate for result in self.results)

    @property
    def seconds(self) -> Stat | None:
        """Their training time."""
        return _stat(found.seconds for found in self.runs if found.result)

    @property
    def energy(self) -> Energy | None:
        """The mean over the runs that have measured it."""
        return Energy.mean(self._energies) if self._energies else None

    @property
    def joules(self) -> Stat | None:
        """The estimated energy of an image in joules."""
        return _stat(1e-9 * energy.snn_nj for energy in self._energies)

    @property
    def synaptic_operations(self) -> Stat | None:
        """The synaptic operations of an image."""
        return _stat(energy.synaptic_operations for energy in self._energies)

    @property
    def _energies(self) -> list[Energy]:
        return [result.energy for result in self.results if result.energy]

    @property
    def layers(self) -> list[Layer]:
        """The neuron layers, in the order of `result.json`."""
        found = []
        for name in self.results[0].rates if self.results else ():
            rate = Stat.of([result.rates[name] for result in self.results if name in result.rates])
            steps = [result.rates_at_step[name] for result in self.results if name in result.rates_at_step]
            at_step = [sum(rates) / len(rates) for rates in zip(*steps, strict=False)]
            found.append(Layer(short_path(name), rate, at_step, stuck({name: rate.mean}, self.run.spiking).get(name, "")))
        return found

    @property
    def confusion(self) -> Confusion | None:
        """The confusions of classes; None if no result has them."""
        listed = [row for result in self.results for row in result.confusions]
        if listed:
            return confusion_of_pairs(listed, self._classes(1 + max(max(row[:2]) for row in listed)))
        counts = [torch.tensor(result.confusion) for result in self.results if result.confusion]
        total = sum((c for c in counts[1:] if c.shape == counts[0].shape), start=counts[0]) if counts else None
        return None if total is None else confusion(total, self._classes(len(total)))

    @property
    def shown(self) -> Finding | None:
        """The first run that has examples."""
        return next((found for found in self.runs if found.examples), None)

    @property
    def examples(self) -> list[Example]:
        kept = self.shown.examples if self.shown else None
        return list(examples(kept, self._classes(kept.logits.shape[2]))) if kept else []

    def _classes(self, num_classes: int) -> list[str]:
        named = [str(name) for name in self.runs[0].about["data"].get("classes") or ()]
        fit = len(named) == num_classes or len(named) > max(num_classes, LARGEST_CONFUSION)
        return named if fit else [str(k) for k in range(num_classes)]


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        groups: runs, grouped by their settings.
        differing: settings that differ between groups, with their values.
        curves: learning curves; with one group a chart for each family of metrics, with several a chart for each metric.
        over_time: test accuracy against time steps.
        strips: test accuracy of every run, in a row for each group.
        notes: messages for the reader.
    """

    groups: tuple[Group, ...]
    differing: list[tuple[str, list[str]]]
    curves: list[Chart]
    over_time: Chart | None
    strips: Strips | None
    notes: list[str]

    @property
    def title(self) -> str:
        """The names of the groups, or their number if there are many."""
        names = [group.name for group in self.groups]
        return ", ".join(names) if len(names) < 5 else f"{len(names)} settings compared"


def gather(paths: Sequence[Path]) -> Report:
    """Read run folders, or folders of such folders, and compare them.

    Raises:
        ValueError: a folder contains no run, is broken, can't be read or is given twice.
    """
    unseen: list[str] = []
    folders = [folder for path in paths for folder in _runs_in(path, unseen)]
    twice = {folder for folder in folders if [f.resolve() for f in folders].count(folder.resolve()) > 1}
    if twice:
        raise ValueError(f"{min(twice)} is given twice: give each run once")
    groups = _grouped([Finding.read(folder) for folder in folders])
    over_time = [
        Series(g.name, {t: [r.at_step[t - 1] for r in g.results if len(r.at_step) >= t] for t in range(1, _longest(g) + 1)})
        for g in groups
    ]
    rows = {g.name: {str(f.path): f.result.test for f in g.runs if f.result} for g in groups}
    return Report(
        groups,
        _differing(groups) if len(groups) > 1 else [],
        list(_curves(groups)),
        charts.chart("Test accuracy against T", over_time, "share", "time steps"),
        charts.strips(rows) if sum(map(len, rows.values())) > 1 else None,
        [*unseen, *_notes(groups)],
    )


# groups -----------------------------------------------------------------------------------------------------------------


def _runs_in(path: Path, unseen: list[str]) -> list[Path]:
    """The run folder itself, or the run folders in a folder and its subfolders; earlier rounds don't count as runs.

    Args:
        unseen: list to which a message is added for each folder that can't be read.
    """
    if not path.is_dir():
        return [path]
    here: list[str] = []
    own, folders = _look(path, here)
    if here:
        raise ValueError(here[0])
    found = [path] if own else []
    for folder in () if own else folders:
        is_run, deeper = _look(folder, unseen)
        found += [folder] if is_run else [place for place in deeper if _look(place, unseen)[0]]
    return sorted(found) or [path]


def _look(folder: Path, unseen: list[str]) -> tuple[bool, list[Path]]:
    """Whether a folder is a run folder, and its subfolders."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
        return any(entry.name == RUN_FILE for entry in entries), [Path(e.path) for e in entries if e.is_dir()]
    except OSError as error:
        unseen.append(f"{folder} can't be read ({error.strerror}): a run in it is left out")
        return False, []


def _grouped(findings: Sequence[Finding]) -> tuple[Group, ...]:
    alike: dict[str, list[Finding]] = {}
    for found in findings:
        alike.setdefault(str((settings(found.run), _checksums(found), _start(found))), []).append(found)
    named: dict[str, int] = {}
    groups = []
    for runs in alike.values():
        runs = sorted(runs, key=lambda found: found.run.seed)
        name = str(runs[0].about.get("preset") or runs[0].path.name)
        named[name] = named.get(name, 0) + 1
        groups.append(Group(f"{name} ({named[name]})" if named[name] > 1 else name, tuple(runs)))
    return tuple(groups)


def _differing(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    all_settings = [settings(group.run) for group in groups]
    names = dict.fromkeys(name for values in all_settings for name in values)
    rows = [(name, [values.get(name, "-") for values in all_settings]) for name in names]
    rows.append(("checksums of the data", [environment.fingerprint(_checksums(group.runs[0])) for group in groups]))
    rows.append(("weights to start from", [_start(group.runs[0]) for group in groups]))
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _notes(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        for found in group.runs:
            for place, about in (
                (found.path, found.about),
                *((earlier.path, earlier.about) for _, earlier in found.rounds if earlier),
            ):
                if why := doubt(place, about):
                    yield why
            if not found.result:
                yield f"{found.path} is not finished: {len(found.rows)} of {found.run.epochs} epochs, and not tested yet"
        for seed in sorted({seed for seed in group.seeds if group.seeds.count(seed) > 1}):
            yield f"{group.name} has seed {seed} more than once: its deviation is too small"
        made_by = {
            "code": [found.about.get("source") for found in group.runs],
            "machines or software": [one for found in group.runs for one in _environments(found.about)],
            "numbers of processes": [found.about.get("ranks") for found in group.runs],
        }
        for what, told in made_by.items():
            if len(set(map(str, told))) > 1:
                yield f"{group.name} was made by different {what}; the card has those of {group.runs[0].path}"


def _environments(about: Mapping[str, Any]) -> list[Any]:
    """The environments in which a run was started and resumed."""
    return [
        about["environment"],
        *(again.get("environment") for again in about.get("resumed") or () if isinstance(again, dict)),
    ]


def _checksums(found: Finding) -> Any:
    return found.about["data"].get("sha256")


def _start(found: Finding) -> str:
    """The checksum of the weights that a run started from, or "fresh"."""
    return str((found.about.get("init") or {}).get("sha256", "fresh"))


def _command(about: Mapping[str, Any]) -> str | None:
    """The command that repeats a run; for several processes, as on one machine."""
    command, ranks = about.get("repeats") or about.get("command"), about.get("ranks") or 1
    if command is None or ranks == 1:
        return command
    return f"torchrun --nproc-per-node {ranks} -m {command}   # or on several machines, {ranks} processes in all"


def _longest(group: Group) -> int:
    """The largest number of time steps in the results."""
    return max((len(result.at_step) for result in group.results), default=0)


def _stat(values: Iterable[float | None]) -> Stat | None:
    there = [value for value in values if value is not None]
    return Stat.of(there) if there else None


# charts -----------------------------------------------------------------------------------------------------------------


def _curves(groups: Sequence[Group]) -> Iterator[Chart]:
    """A chart for each metric that several groups have; for other metrics a chart for each family and group."""
    keys = {group.name: {key for found in group.runs for row in found.rows for key in row} for group in groups}
    seen: set[str] = set()
    known = sorted(set().union(*keys.values()))
    listed = {key for family in _FAMILIES for pattern in family.names for key, _ in _matching(pattern, "", known)}
    terms = {key: key for key in known if key not in listed and key not in _NOT_DRAWN}
    for family in (*_FAMILIES, _Family("Further terms of the loss", "number", terms)):
        names = {key: says for pattern, start in family.names.items() for key, says in _matching(pattern, start, known)}
        new = [key for key in names if key not in seen]
        seen |= names.keys()
        common = [key for key in new if sum(key in own for own in keys.values()) > 1]
        drawn = []
        for key in common:
            title = f"{family.title}: {names[key]}" if len(family.names) > 1 else family.title
            drawn.append((title, [_series(group.name, key, group) for group in groups]))
        for group in groups:
            own = [key for key in names if key in keys[group.name] and key not in common]
            if any(key in new for key in own):
                title = family.title if len(groups) == 1 else f"{family.title}, {group.name}"
                drawn.append((title, [_series(names[key], key, group) for key in own]))
        made = (charts.chart(title, series, family.form, "epoch", family.zero) for title, series in drawn)
        yield from (one for one in made if one)


def _matching(pattern: str, says: str, keys: Sequence[str]) -> list[tuple[str, str]]:
    if not pattern.endswith("*"):
        return [(pattern, says)] if pattern in keys else []
    start = pattern.removesuffix("*")
    return [(key, says + key.removeprefix(start)) for key in keys if key.startswith(start)]


def _series(name: str, key: str, group: Group) -> Series:
    values: dict[float, list[float]] = {}
    for found in group.runs:
        for row in found.rows:
            if key in row:
                values.setdefault(row["epoch"], []).append(row[key])
    result = group.runs[0].result
    return Series(name, values, result.epoch if result and len(group.runs) == 1 and key == "validation" else None)
