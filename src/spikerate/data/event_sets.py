"""Event recordings as a data set: each is cut into T frames once, and the frames are kept in a cache."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from spikerate.data.cache import Cached, cached, stamp
from spikerate.data.camera import saccades
from spikerate.data.class_folders import part_ends
from spikerate.data.digits import digits
from spikerate.data.events import Events
from spikerate.data.frames import frames
from spikerate.data.recordings import Recording, Recordings, read
from spikerate.data.resize import Resize
from spikerate.data.samples import Block, DataSet, Stored, Units, fitted
from spikerate.data.settings import Data
from spikerate.data.workers import parallel
from spikerate.system.progress import Track

_CAMERA = (16, 16)
"""(H, W) of the simulated camera that records the digits."""


class Cut(Protocol):
    """Recordings of one file -> for each its frames [T, C, H, W], or a sentence that says why it is broken."""

    @property
    def by(self) -> Literal["number", "time"]:
        """How recordings are cut, as `Data.frames` says."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the frames of a recording."""

    @property
    def dtype(self) -> type[np.generic]:
        """Type of the counts."""

    @property
    def together(self) -> int:
        """Recordings of one file that a worker process reads at a time."""

    def __call__(self, recordings: Sequence[Recording]) -> list[np.ndarray | str]: ...


@dataclass(frozen=True)
class CameraCut:
    """The `Cut` of recordings of an event camera: frames [T, 2, H, W]."""

    together: ClassVar[int] = 16
    dtype: ClassVar[type[np.generic]] = np.int16

    T: int
    sensor: tuple[int, int]
    by: Literal["number", "time"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the frames of a recording."""
        return self.T, 2, *self.sensor

    def __call__(self, recordings: Sequence[Recording]) -> list[np.ndarray | str]:
        found = read(recordings, self.sensor)
        return [self.frames(events, str(r.file)) for events, r in zip(found, recordings, strict=True)]

    def frames(self, events: Events | str, where: str) -> np.ndarray | str:
        if isinstance(events, str):
            return events
        try:
            return frames(events, self.T, self.sensor, self.by)
        except ValueError as error:
            return f"{where}: {error}"


def camera_cut(found: Recordings, data: Data, T: int) -> Cut:
    """What makes the frames of recordings of an event camera, by the settings of the data and T."""
    return CameraCut(T, found.sensor, data.frames)


def recorded(
    layout: Callable[[Data], Recordings], cutting: Callable[[Recordings, Data, int], Cut] = camera_cut
) -> Callable[[Data, int, Track], DataSet]:
    """The loader of recordings in that layout; it raises `ValueError` with one sentence if a recording is broken."""

    def load(data: Data, T: int, track: Track) -> DataSet:
        found = layout(data)
        everything = [*found.train, *found.validation, *found.test]
        cut = cutting(found, data, T)

        def rows() -> Iterator[Any]:
            made = itertools.chain.from_iterable(parallel(cut, _chunks(everything, cut.together), data.workers))
            return track(made, "cutting recordings into frames", len(everything))

        kept = _cached(data, cut, {"files": _digest(everything)}, rows, track)
        good = [k for k in range(len(everything)) if k not in kept.broken]
        labels = torch.tensor([everything[k].label for k in good])
        ends = part_ends(good, (found.train, found.validation, found.test), data.path or Path(), kept.broken)
        made = _frame_set(data, kept, labels, ends, found.classes, found.licence)
        return replace(made, split=found.split, skipped=tuple(kept.broken.values()), notes=found.notes)

    return load


def digits_dvs(data: Data, T: int, track: Track) -> DataSet:
    """The built-in digits, recorded by a simulated event camera during three saccades: 16 x 16, with the split of digits."""
    still = digits()
    parts = (still.train, still.validation, still.test)
    images = torch.cat([next(p.read([Block(torch.arange(len(p)))], torch.device("cpu"))) for p in parts])
    cut = CameraCut(T, _CAMERA, data.frames)

    def rows() -> Iterator[Any]:
        made = (cut.frames(events, "digits") for events in saccades(images.squeeze(1).numpy() / 255))
        cuts = track(made, "simulating an event camera", len(images))
        return (frames if isinstance(frames, str) else torch.from_numpy(frames) for frames in cuts)

    kept = _cached(data, cut, still.checksums, rows, track)
    ends = len(still.train), len(still.train) + len(still.validation)
    made = _frame_set(data, kept, torch.cat([part.labels for part in parts]), ends, still.classes, still.licence)
    return replace(made, split=still.split, checksums={**still.checksums, **made.checksums})


def _cached(data: Data, cut: Cut, key: dict[str, str], rows: Callable[[], Iterator[Any]], track: Track) -> Cached:
    key = {**key, "by": cut.by}
    return cached(data.cache, data.name, key, cut.shape, cut.dtype, rows, data.broken == "skip", track)


def _frame_set(
    data: Data, kept: Cached, labels: Tensor, ends: tuple[int, int], classes: tuple[str, ...], licence: str
) -> DataSet:
    """The data set of frames that are sorted as training, validation and test samples; the first two end at `ends`."""
    stored = Stored(kept.rows, labels)
    samples = fitted(stored, Resize(data.size)) if data.size else stored
    return DataSet(
        name=data.name,
        train=samples[: ends[0]],
        validation=samples[ends[0] : ends[1]],
        test=samples[ends[1] :],
        classes=classes,
        units=Units((0.0,) * stored.shape[0], (1.0,) * stored.shape[0], 1.0),
        licence=licence,
        checksums={"frames": kept.sha256},
    )


def _chunks(recordings: Sequence[Recording], together: int) -> Iterator[list[Recording]]:
    """Consecutive recordings of the same file, a few at a time."""
    for _, same_file in itertools.groupby(recordings, key=lambda recording: recording.file):
        while few := list(itertools.islice(same_file, together)):
            yield few


def _digest(recordings: Sequence[Recording]) -> str:
    """A hash of the files' names, sizes and modification times, so that a cache is made again when its sources change."""
    digest = hashlib.sha256()
    for r in recordings:
        size, changed = stamp(r.file)
        digest.update(os.fsencode(f"{r.file} {r.member} {r.span} {r.label} {size} {changed}\n"))
    return digest.hexdigest()
