"""Loading the data and settings of a run; for an existing run, the data must be the same as before."""

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
"""Number of broken files that are listed by name."""


def load_data(run: Run, audience: Audience, ranks: Ranks = Ranks()) -> DataSet:
    """The data of a run, which must be the same on every rank. Rank 0 reads first, and makes the cache for the others.

    Raises:
        ValueError: the data are missing or broken, or differ between the ranks.
    """
    with ranks.barrier():
        found = load(run.data, run.T, audience.track) if ranks.first else None
    with ranks.barrier():
        data = found or load(run.data, run.T, audience.track)
    # Numbers of messages only: their texts contain paths, which may differ between machines.
    ranks.check_same({"data": data_card(data) | {"skipped": len(data.skipped), "notes": len(data.notes)}})
    for note in data.notes:
        audience.say(note)
    for reason in data.skipped[:_MOST_SKIPPED]:
        audience.say(f"left out: {reason}")
    if data.skipped:
        audience.say(f"{len(data.skipped)} broken files were left out in total")
    return data


def load_data_again(run: Run, record: Record, audience: Audience, ranks: Ranks = Ranks()) -> DataSet:
    """The data of an existing run.

    Raises:
        ValueError: as `load_data`, or the files are not the same as before, so that the split would differ, too.
    """
    data, then = load_data(run, audience, ranks), record.about["data"].get("sha256")
    now = data_card(data)["sha256"]
    then = then if isinstance(then, dict) else {}
    differing = [name for name in (then or now) if then.get(name) != now.get(name)]
    if differing:
        raise ValueError(
            f"the data set is not the one that {record.folder.path} began with: its checksums differ "
            f"({', '.join(differing)})"
        )
    for name in now.keys() - then.keys():
        audience.say(f"note: the record of {record.folder.path} has no checksum of the data's {name}: they may differ")
    return data


def settings_again(record: Record, audience: Audience, data: Path | None = None, device: str | None = None) -> Run:
    """The settings of an existing run, with another path of its data or another device."""
    run = record.run
    note_doubt(record, audience)
    if run.data.cache and not keeps_caches(run.data.cache):
        # The record may come from somebody else, who could name any folder of the user.
        audience.say(f"there is no cache in {run.data.cache}, which the run names: the user's cache folder is used instead")
        run = replace(run, data=replace(run.data, cache=None))
    run = replace(run, data=replace(run.data, path=data)) if data else run
    return replace(run, device=device) if device else run


def note_doubt(record: Record, audience: Audience) -> None:
    """Say so if the settings in `run.json` are not those that the run began with."""
    if record.doubt:
        audience.say(f"note: {record.doubt}")
