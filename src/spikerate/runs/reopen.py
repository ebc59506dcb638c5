"""Data and settings of a run, for the first time or again: a run that there is already has to find the same data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spikerate.data import DataSet, keeps_caches, load
from spikerate.runs.audience import Audience
from spikerate.runs.config import Run
from spikerate.runs.experiment import data_card
from spikerate.runs.record import Record
from spikerate.system.dist import Ranks

_MOST_SKIPPED = 3
"""Broken files that are named."""


def load_data(run: Run, audience: Audience, ranks: Ranks = Ranks()) -> DataSet:
    """The data of a run, the same on every rank. Rank 0 reads first: it makes the cache that the others find.

    Raises:
        ValueError: they are missing or broken, or differ between the ranks.
    """
    with ranks.barrier():
        found = load(run.data, run.T, audience.track) if ranks.first else None
    with ranks.barrier():
        data = found or load(run.data, run.T, audience.track)
    ranks.check_same(
        {"data": data_card(data) | {"skipped": len(data.skipped), "notes": len(data.notes)}}
    )  # these name places
    for note in data.notes:
        audience.say(note)
    for reason in data.skipped[:_MOST_SKIPPED]:
        audience.say(f"left out: {reason}")
    if data.skipped:
        audience.say(f"{len(data.skipped)} broken files in all were left out")
    return data


def load_data_again(run: Run, record: Record, audience: Audience, ranks: Ranks = Ranks()) -> DataSet:
    """The data of a run that there is already.

    Raises:
        ValueError: as `load_data`, or the files are others than then, so that the split would be another too.
    """
    data, then = load_data(run, audience, ranks), record.about["data"].get("sha256")
    now = data_card(data)["sha256"]
    then = then if isinstance(then, dict) else {}
    differing = [name for name in (then or now) if then.get(name) != now.get(name)]
    if differing:
        raise ValueError(
            f"the data set is not the one that {record.folder.path} was begun with: its checksums differ "
            f"({', '.join(differing)})"
        )
    for name in now.keys() - then.keys():
        audience.say(f"note: the record of {record.folder.path} has no checksum of the data's {name}: they may be others")
    return data


def settings_again(record: Record, audience: Audience, data: Path | None = None, device: str | None = None) -> Run:
    """The settings of a run that there is already, with its data or the device in another place."""
    run = record.run
    note_doubt(record, audience)
    if run.data.cache and not keeps_caches(run.data.cache):
        # The record may be a stranger's, who could have named any folder of the user's.
        audience.say(f"there is no cache in {run.data.cache}, which the run names: one is kept in the user's cache folder")
        run = replace(run, data=replace(run.data, cache=None))
    run = replace(run, data=replace(run.data, path=data)) if data else run
    return replace(run, device=device) if device else run


def note_doubt(record: Record, audience: Audience) -> None:
    """Say where the settings in `run.json` are not those that the run was begun with."""
    if record.doubt:
        audience.say(f"note: {record.doubt}")
