"""All data sets by name: the properties that a network depends on, and how each is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from spikerate.data.augment import Augment
from spikerate.data.cifar import cifar10, cifar100
from spikerate.data.digits import digits
from spikerate.data.download import SOURCES
from spikerate.data.event_sets import digits_dvs, recorded
from spikerate.data.idx import fashion_mnist, mnist
from spikerate.data.image_files import image_files, tiny_imagenet
from spikerate.data.recordings import Recordings, cifar10_dvs, dvs128_gesture, event_folder, n_caltech101, n_mnist
from spikerate.data.resize import Resize
from spikerate.data.samples import DataSet, Samples, Stored, divide, fitted
from spikerate.data.settings import Data
from spikerate.data.sounds import binning, shd, ssc
from spikerate.system.files import digest
from spikerate.system.progress import Track, untracked

Loader = Callable[[Data, int, Track], DataSet]


@dataclass(frozen=True)
class Entry:
    """What is known of a data set before it is read.

    Attributes:
        kind: images kept in memory, image files, recordings of an event camera, or of sounds.
        shape: (C, H, W) of a sample or a frame; for class folders the default.
        num_classes: K; None if it follows from the class folders.
        samples: training samples as distributed; None if the number follows from the class folders.
        load: (settings, T, track) -> the data set, with the split that it is distributed with.
        built_in: whether it is part of spikerate, with its own validation set.
    """

    kind: Literal["images", "files", "events", "sounds"]
    shape: tuple[int, int, int]
    num_classes: int | None
    samples: int | None
    load: Loader
    built_in: bool = False

    @property
    def recorded(self) -> bool:
        """Whether its samples are recordings, cut into T frames."""
        return self.kind in ("events", "sounds")


def _images(read: Callable[[Path], DataSet]) -> Loader:
    """The loader of images that are kept in memory, as read from their folder."""
    return _resized(lambda data, T, track: read(data.path or Path()))


def _resized(whole: Loader) -> Loader:
    """The loader, with images that are resized to `data.size` as they are read."""

    def load(data: Data, T: int, track: Track) -> DataSet:
        found = whole(data, T, track)
        if data.size is None:
            return found
        train, validation, test = (fitted(part, Resize(data.size)) for part in (found.train, found.validation, found.test))
        return replace(found, train=train, validation=validation, test=test)

    return load


def _of_path(layout: Callable[[Path], Recordings]) -> Callable[[Data], Recordings]:
    return lambda data: layout(data.path or Path())


def _events(data: Data) -> Recordings:
    assert data.sensor is not None
    return event_folder(data.path or Path(), data.sensor)


SETS: dict[str, Entry] = {
    "digits": Entry("images", (1, 8, 8), 10, 1257, _images(lambda path: digits()), built_in=True),
    "cifar10": Entry("images", (3, 32, 32), 10, 50_000, _images(cifar10)),
    "cifar100": Entry("images", (3, 32, 32), 100, 50_000, _images(cifar100)),
    "mnist": Entry("images", (1, 28, 28), 10, 60_000, _images(mnist)),
    "fashion-mnist": Entry("images", (1, 28, 28), 10, 60_000, _images(fashion_mnist)),
    "tiny-imagenet": Entry("images", (3, 64, 64), 200, 100_000, _resized(tiny_imagenet)),
    "imagenet": Entry("files", (3, 224, 224), 1000, 1_281_167, image_files),
    "images": Entry("files", (3, 224, 224), None, None, image_files),
    "digits-dvs": Entry("events", (2, 16, 16), 10, 1257, digits_dvs, built_in=True),
    "cifar10-dvs": Entry("events", (2, 128, 128), 10, 10_000, recorded(_of_path(cifar10_dvs))),
    "n-mnist": Entry("events", (2, 34, 34), 10, 60_000, recorded(_of_path(n_mnist))),
    "n-caltech101": Entry("events", (2, 180, 240), 101, 7_838, recorded(_of_path(n_caltech101))),
    "dvs128-gesture": Entry("events", (2, 128, 128), 11, 1_176, recorded(_of_path(dvs128_gesture))),
    "events": Entry("events", (2, 128, 128), None, None, recorded(_events)),
    "shd": Entry("sounds", (1, 1, 700), 20, 8_156, recorded(_of_path(shd), binning(1.4))),
    "ssc": Entry("sounds", (1, 1, 700), 35, 75_466, recorded(_of_path(ssc), binning(1.0))),
}


def entry_of(data: Data) -> Entry:
    """What is known of the data set of a run before it is read; of one of the user's own, the shape is not."""
    if data.name != "own":
        return SETS[data.name]
    if data.reader.recorded:
        return Entry("events", (0, 0, 0), None, None, lambda data, T, track: _read_own(data, T))
    return Entry("images", (0, 0, 0), None, None, _resized(lambda data, T, track: _read_own(data, T)))


def input_shape(data: Data) -> tuple[int, int, int]:
    """(C, H, W) of a network's input."""
    channels, *sides = SETS[data.name].shape
    height, width = data.sensor or sides
    return (channels, data.size, data.size) if data.size else (channels, height, width)


def check(data: Data) -> None:
    """Raise `ValueError` if a setting does not fit the data set. Nothing is read yet."""
    if data.name not in SETS and data.name != "own":
        raise ValueError(f"data.name is {data.name!r}: give one of {', '.join(SETS)}, own")
    entry, augment = entry_of(data), data.augment
    if entry.built_in and (data.validation or data.path or data.test):
        raise ValueError(
            f"{data.name} is built in with its own validation samples: leave data.path, data.validation and data.test alone"
        )
    if entry.kind == "sounds" and (data.size is not None or replace(augment, mixup=0.0, repeats=1) != Augment()):
        raise ValueError(
            f"data.size and data.augment are for images, and {data.name} has channels of sound: leave them alone, but for "
            "mixup and repeats"
        )
    if augment.policies and (entry.kind == "events" or (data.name != "own" and entry.shape[0] != 3)):
        (policy,) = augment.policies
        raise ValueError(f"data.augment.{policy} is for colour images, and {data.name} has none: leave it out")
    if entry.kind != "files" and (augment.resized_crop or data.decoded):
        raise ValueError(
            f"resized_crop and decoded are for image files of any size, and {data.name} has none: leave them alone"
        )
    if data.name == "own" and entry.kind == "events" and data.size is not None:
        raise ValueError(f"data.size is {data.size}, and recordings of your own are read at their size: leave it alone")
    if data.name != "own":
        check_crop(data, input_shape(data))
    if (data.name == "events") != (data.sensor is not None):
        raise ValueError(
            "events needs the size of its sensor: give --data.sensor HEIGHT WIDTH"
            if data.name == "events"
            else f"data.sensor is for --data.name events only, and this is {data.name}: leave it alone"
        )


def check_crop(data: Data, shape: tuple[int, int, int]) -> None:
    """Raise `ValueError` where the crop or the shift of the augmentation is wider than samples [C, H, W]."""
    side = min(shape[1:])
    for name, most in (("crop", side), ("translate", side - 1)):
        value = getattr(data.augment, name)
        if value > most:
            raise ValueError(f"data.augment.{name} is {value}, wider than the samples: give at most {most} pixels")


def load(data: Data, T: int, track: Track = untracked) -> DataSet:
    """A data set with its training, validation and test samples.

    Args:
        data: the settings.
        T: number of frames that a recording is cut into.
        track: shows the progress.

    Raises:
        ValueError: a setting is wrong, or the files are missing or broken; the sentence names the file.
    """
    check(data)
    entry = entry_of(data)
    if not (entry.built_in or data.name == "own"):
        data = replace(data, path=_place(data))
    found = entry.load(data, T, track)
    if data.name == "own":
        check_crop(data, found.shape)
    if entry.num_classes not in (None, len(found.classes)):
        raise ValueError(
            f"{data.path} has {len(found.classes)} classes, and {data.name} {entry.num_classes}: "
            "for class folders of your own give --data.name images"
        )
    trained = set(found.train.labels.tolist())
    empty = [name for label, name in enumerate(found.classes) if found.skipped and label not in trained]
    if empty:
        raise ValueError(f"{data.path} has no readable training sample of the class {empty[0]}: {found.skipped[0]}")
    return divide(found, data.validation, data.test, data.subset)


def _read_own(data: Data, T: int) -> DataSet:
    """What a reader of the user's own reads, checked, with checksums of all that lies in memory."""
    found: Any = data.reader.read(data.path, T)
    reader = type(data.reader).__name__
    if not isinstance(found, DataSet):
        raise ValueError(f"{reader}.read gives a {type(found).__name__}: give a spikerate.data.DataSet")
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    for name, part in parts.items():
        labels = part.labels
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise ValueError(f"{reader} reads {name} labels of {labels.dtype}, {list(labels.shape)}: give [N] int64")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(found.classes):
            raise ValueError(f"{reader} reads {name} labels that are not 0 to {len(found.classes) - 1}, one for each class")
    if not len(found.train):
        raise ValueError(f"{reader} reads no training samples")
    if len(found.units.mean) != found.shape[0] or len(found.units.std) != found.shape[0]:
        raise ValueError(f"{reader} reads samples of {found.shape[0]} channels, and its units are not of as many")
    if found.checksums:
        return found
    return replace(found, checksums={name: digest(_in_memory(part)) for name, part in parts.items()})


def _in_memory(part: Samples) -> dict[str, Tensor]:
    kept = {"samples": part.samples} if isinstance(part, Stored) else {}
    return {"labels": part.labels, **kept}


def _place(data: Data) -> Path:
    if data.path is None:
        fetched = f" (spikerate fetch {data.name} FOLDER gets it)" if data.name in SOURCES else ""
        raise ValueError(f"{data.name} needs its folder: give --data PATH, the folder of its files{fetched}")
    if not data.path.is_dir():
        what = "is no folder" if data.path.exists() else "does not exist"
        raise ValueError(f"the data folder {data.path} {what}: give the folder of {data.name}")
    return data.path.resolve()
