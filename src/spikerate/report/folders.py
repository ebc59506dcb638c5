"""Reading a run folder for a report, with checks: it may be of another version, incomplete or altered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikerate.measure.energy import Energy, Operations
from spikerate.runs.config import Run
from spikerate.runs.examples import Examples
from spikerate.runs.record import RunFolder
from spikerate.runs.state import Row
from spikerate.system.codec import Own

_LARGEST = 1e15
"""Whole numbers below are exact as floats; larger or infinite values are not results of a run."""


@dataclass(frozen=True)
class Averaged:
    """What test-time averaging gave: the test accuracy over so many views of each sample, and the spikes of all of them."""

    test: float
    views: int
    spikes: float

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Averaged:
        """The entry of `result.json`; raises as `Result.parse`."""
        return cls(_share(record["test_accuracy"]), int(_number(record["views"])), _number(record["spikes_per_image"]))


@dataclass(frozen=True)
class Result:
    """The content of `result.json`; entries that an earlier version did not write are empty."""

    epoch: int
    test: float
    interval: tuple[float, float]
    images: int
    validation: float | None
    at_step: list[float]
    rate: float
    rates: dict[str, float]
    rates_at_step: dict[str, list[float]]
    confusion: list[list[int]]
    confusions: list[list[int]]
    energy: Energy | None
    averaged: Averaged | None

    @classmethod
    def parse(cls, record: Mapping[str, Any], T: int) -> Result:
        """The result of a run of T steps.

        Raises KeyError, TypeError, AttributeError, OverflowError or ValueError if the record has another form.
        """
        low, high = map(_share, record["test_interval_95"])
        validation, operations = record.get("validation_accuracy"), record.get("operations", {})
        at_step = record.get("firing_rates_at_step", {})
        return cls(
            epoch=int(record["epoch"]),
            test=_share(record["test_accuracy"]),
            interval=(low, high),
            images=int(record["test_images"]),
            validation=None if validation is None else _share(validation),
            at_step=[_share(share) for share in record.get("test_accuracy_at_step", [])],
            rate=_share(record["firing_rate"]),
            rates={layer: _share(rate) for layer, rate in record["firing_rates"].items()},
            rates_at_step={layer: [_share(rate) for rate in rates] for layer, rates in at_step.items()},
            confusion=_counts(record.get("confusion", [])),
            confusions=[_confusion(row) for row in record.get("confusions", [])],
            energy=Energy({layer: _operations(entry) for layer, entry in operations.items()}, T) if operations else None,
            averaged=Averaged.parse(record["averaged"]) if "averaged" in record else None,
        )


@dataclass(frozen=True)
class Finding:
    """The content of a run folder.

    Attributes:
        result: None while the run is not finished.
        rounds: settings of the earlier rounds, each with the content of its folder if it has begun.
    """

    path: Path
    run: Run
    about: Mapping[str, Any]
    rows: list[Row]
    result: Result | None
    examples: Examples | None
    rounds: list[tuple[Run, Finding | None]]

    @classmethod
    def read(cls, path: Path) -> Finding:
        """Read a run folder.

        Raises:
            ValueError: it contains no run, or one of its files is broken.
        """
        folder = RunFolder.open(path, Own(shown=True))
        record = folder.record()
        run = record.run
        before = folder.rounds(run)[:-1]
        return cls(
            path,
            run,
            record.about,
            [_finite(row, path) for row in folder.metrics()] if folder.has_epochs else [],
            _result(folder, run.T),
            Examples.read(path),
            [(of, cls.read(place.path) if place.stands else None) for of, place in before],
        )

    @property
    def seconds(self) -> float:
        """The training time, including that of earlier rounds."""
        before = sum(found.seconds for _, found in self.rounds if found)
        return before + float(sum(row.get("seconds", 0.0) for row in self.rows))


def _result(folder: RunFolder, T: int) -> Result | None:
    record = folder.result()
    try:
        return Result.parse(record, T) if record else None
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
        raise ValueError(
            f"{folder.result_file} is no result ({error!r}): it was altered, or is of another version"
        ) from error


def _finite(row: Row, path: Path) -> Row:
    """The entries of a line of `metrics.jsonl` that are finite numbers, which can be drawn."""
    kept = {key: value for key, value in row.items() if isinstance(value, int | float) and abs(value) < _LARGEST}
    if "epoch" not in kept:
        raise ValueError(f"{RunFolder(path).metrics_file} has the epoch {row['epoch']}: it was altered")
    return kept


def _number(value: Any) -> float:
    number = float(value)
    if not abs(number) < _LARGEST:
        raise ValueError(f"{value} is not a finite number")
    return number


def _share(value: Any) -> float:
    share = _number(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{value} is not between 0 and 1")
    return share


def _counts(rows: Sequence[Sequence[Any]]) -> list[list[int]]:
    counts = [[int(_number(n)) for n in row] for row in rows]
    if any(len(row) != len(counts) or min(row) < 0 for row in counts):
        raise ValueError("confusion is not square, or has a negative count")
    return counts


def _confusion(row: Sequence[Any]) -> list[int]:
    label, found, count = (int(_number(n)) for n in row)
    if min(label, found, count) < 0:
        raise ValueError("confusions has a negative number")
    return [label, found, count]


def _operations(entry: Mapping[str, Any]) -> Operations:
    binary = {"real": False, "binary": True}[entry["input"]]
    return Operations(_number(entry["acs" if binary else "macs"]), int(_number(entry["dense_macs"])), binary)
