"""Sounds as spikes: the Spiking Heidelberg Digits and the Spiking Speech Commands, in HDF5 files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from spikerate.data.frames import by_number
from spikerate.data.recordings import Recording, Recordings
from spikerate.data.settings import Data

CHANNELS = 700
"""Of the model of the inner ear that made the spikes."""
_LICENCE = "CC BY 4.0, Cramer et al. 2020"
_LONGEST = 60.0
"""Seconds; spoken words take one. Larger times are in another unit."""
_MOST_SPIKES = 2**24
"""Of a word; official ones have some ten thousand."""
_MOST = int(np.iinfo(np.uint8).max)
_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError)
"""What h5py raises of a broken file."""


def shd(path: Path) -> Recordings:
    """The Spiking Heidelberg Digits (Cramer et al., IEEE TNNLS 2020): spoken digits in English and German, 20 classes.

    Args:
        path: the folder of `shd_train.h5` and `shd_test.h5`.

    Raises:
        ValueError: h5py is not installed, or a file is missing, not unpacked, or not in the official layout.
    """
    (train, test), classes = _parts(path, "shd", ("train", "test"), 20)
    return Recordings("shd", train, test, classes, (1, CHANNELS), _LICENCE)


def ssc(path: Path) -> Recordings:
    """The Spiking Speech Commands (Cramer et al., IEEE TNNLS 2020): 35 spoken words, with a validation set of their own.

    Args:
        path: the folder of `ssc_train.h5`, `ssc_valid.h5` and `ssc_test.h5`.

    Raises:
        ValueError: as `shd`.
    """
    (train, validation, test), classes = _parts(path, "ssc", ("train", "valid", "test"), 35)
    return Recordings("ssc", train, test, classes, (1, CHANNELS), _LICENCE, validation, "as distributed")


def binned(
    t: NDArray[Any], unit: NDArray[Any], T: int, seconds: float, by: Literal["number", "time"] = "time"
) -> NDArray[np.uint8]:
    """Count the spikes of each channel in T slices of a word.

    Args:
        t: [N] seconds, sorted.
        unit: [N] channels, 0 to 699.
        T: number of slices, which are the time steps.
        seconds: what the slices cover together by time, from 0 on.
        by: "time": slices of `seconds / T`, of which the last also has what comes later, so that a short word ends in
            silence; "number": N // T spikes in each slice, and the remainder in the last one too.

    Returns:
        [T, 700].

    Raises:
        ValueError: the arrays are of other types, shapes or lengths; there is no spike, or there are fewer than T slices by
            number; a time is not finite, negative, too late, or before the one before it; a channel does not exist; or a
            count is above 255.
    """
    _check_spikes(t, unit)
    n = len(t)
    if by == "number" and n < T:
        raise ValueError(f"{n} spikes can't be cut into {T} slices of equal number: give a smaller T, or --data.frames time")
    inner = np.searchsorted(t.astype(np.float64), np.arange(1, T) * seconds / T)
    edges = by_number(n, T) if by == "number" else [0, *inner.tolist(), n]
    step = np.repeat(np.arange(T), np.diff(edges))
    counts = np.bincount(step * CHANNELS + unit.astype(np.intp), minlength=T * CHANNELS)
    if counts.max() > _MOST:
        raise ValueError(f"a channel has {counts.max():,} spikes in one of {T} slices, more than {_MOST}: give a larger T")
    return counts.astype(np.uint8).reshape(T, CHANNELS)


@dataclass(frozen=True)
class Binning:
    """Recordings of one file -> for each its frames [T, 1, 1, 700], or a sentence that says why it is broken."""

    together: ClassVar[int] = 256
    """A file is opened and looked through for so many recordings."""
    dtype: ClassVar[type[np.generic]] = np.uint8

    T: int
    seconds: float
    by: Literal["number", "time"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the frames of a recording."""
        return self.T, 1, 1, CHANNELS

    def __call__(self, recordings: Sequence[Recording]) -> list[np.ndarray | str]:
        file, open_file = recordings[0].file, _opened()
        try:
            with open_file(file) as content:
                return [self._binned(content, r) for r in recordings]
        except _ERRORS as error:
            return [_no_file_of_sounds(file, error)] * len(recordings)

    def _binned(self, content: Any, recording: Recording) -> np.ndarray | str:
        where = f"{recording.file}, recording {recording.member}"
        k = int(recording.member or 0)
        try:
            t, unit = (content[f"spikes/{name}"][k] for name in ("times", "units"))
        except _ERRORS as error:
            return f"{where}: can't be read ({error}): fetch the file again"
        try:
            return binned(t, unit, self.T, self.seconds, self.by).reshape(self.shape)
        except ValueError as error:
            return f"{where}: {error}"


def binning(seconds: float) -> Callable[[Recordings, Data, int], Binning]:
    """What makes the frames of recordings that last for so long, by the settings of the data and T."""
    return lambda found, data, T: Binning(T, seconds, data.frames)


def _check_spikes(t: NDArray[Any], unit: NDArray[Any]) -> None:
    """Raise `ValueError` unless these are the times and channels of the spikes of a word."""
    if np.ndim(t) != 1 or np.ndim(unit) != 1 or t.dtype.kind != "f" or unit.dtype.kind not in "iu":
        raise ValueError("its times are no list of fractions of seconds, or its units no list of whole numbers")
    if len(t) != len(unit):
        raise ValueError(f"it has {len(t):,} times and {len(unit):,} units, and each spike has one of both")
    if not 1 <= len(t) <= _MOST_SPIKES:
        raise ValueError(f"it has {len(t):,} spikes, and a word has 1 to {_MOST_SPIKES:,}")
    wrong = ~((t >= 0) & (t <= _LONGEST))  # NaN too
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(f"the time of spike {k} is {float(t[k]):g}, and times are seconds from 0 to {_LONGEST:g}")
    back = t[1:] < t[:-1]
    if back.any():
        k = int(back.argmax()) + 1
        raise ValueError(f"spike {k} at {float(t[k]):g} s comes after one at {float(t[k - 1]):g} s: times have to be sorted")
    wrong = (unit < 0) | (unit >= CHANNELS)
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(f"the unit of spike {k} is {int(unit[k])}, and units are channels from 0 to {CHANNELS - 1}")


def _parts(
    path: Path, name: str, parts: Sequence[str], num_classes: int
) -> tuple[list[tuple[Recording, ...]], tuple[str, ...]]:
    """The recordings of each part, and the names of the classes."""
    files = [path / f"{name}_{part}.h5" for part in parts]
    found = [_read_labels(file, num_classes) for file in files]
    for (file, (_, words)), (first, (_, known)) in itertools.pairwise(zip(files, found, strict=True)):
        if words != known:
            raise ValueError(f"{file} and {first} have other words for their labels: fetch both again")
    made = [
        tuple(Recording(file, label, str(k)) for k, label in enumerate(labels))
        for file, (labels, _) in zip(files, found, strict=True)
    ]
    return made, found[0][1]


def _read_labels(file: Path, num_classes: int) -> tuple[list[int], tuple[str, ...]]:
    """The labels of the recordings in a file, and the word of each label, or its number where the file does not say."""
    packed = file.with_name(f"{file.name}.gz")
    if not file.exists() and packed.exists():
        raise ValueError(f"{packed} is packed: unpack it by gunzip --keep {packed.name}")
    open_file = _opened()
    try:
        with open_file(file) as content:
            labels = _checked_labels(content, num_classes)
            return labels, _words(content, num_classes)
    except _ERRORS as error:
        raise ValueError(_no_file_of_sounds(file, error)) from error


def _checked_labels(content: Any, num_classes: int) -> list[int]:
    missing = [name for name in ("spikes/times", "spikes/units", "labels") if name not in content]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    lengths = {name: content[name].shape for name in ("spikes/times", "spikes/units", "labels")}
    if len(set(lengths.values())) != 1 or len(lengths["labels"]) != 1:
        told = ", ".join(f"{name} {list(shape)}" for name, shape in lengths.items())
        raise ValueError(f"its lists are not of one length ({told})")
    labels = content["labels"][()]
    if labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(f"its labels are {len(labels)} of {labels.dtype}, and not whole numbers")
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(f"the label of recording {k} is {int(labels[k])}, and labels are 0 to {num_classes - 1}")
    found: list[int] = labels.tolist()
    return found


def _words(content: Any, num_classes: int) -> tuple[str, ...]:
    if "extra/keys" not in content:
        return tuple(map(str, range(num_classes)))
    words = tuple(word.decode() if isinstance(word, bytes) else str(word) for word in content["extra/keys"][()])
    if len(set(words)) != num_classes:
        raise ValueError(f"its extra/keys are {len(set(words))} different words, and there are {num_classes} classes")
    return words


def _no_file_of_sounds(file: Path, error: Exception) -> str:
    why = " ".join(str(error).split())
    return f"{file} is no file of these sounds, or truncated: {why}; fetch it again"


def _opened() -> Callable[[Path], AbstractContextManager[Any]]:
    """What opens a file.

    Raises:
        ValueError: the package h5py is not installed.
    """
    try:
        from spikerate.system.hdf5 import opened
    except ImportError as error:
        raise ValueError("HDF5 files are read by another package: pip install 'spikerate[sounds]'") from error
    return opened
