"""The settings of the data, as on the command line and in `run.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from spikerate.data.augment import LARGEST_SIDE, Augment
from spikerate.data.samples import DataReader, Listed

_MOST_SAMPLES = 10**9
_MOST_WORKERS = 128


@dataclass(frozen=True)
class Data:
    """The data set: its files, split, size, frames and augmentation."""

    name: Literal[
        "digits",
        "cifar10",
        "cifar100",
        "mnist",
        "fashion-mnist",
        "tiny-imagenet",
        "imagenet",
        "images",
        "digits-dvs",
        "cifar10-dvs",
        "n-mnist",
        "n-caltech101",
        "dvs128-gesture",
        "events",
        "shd",
        "ssc",
        "own",
    ] = "digits"
    """data set; digits and digits-dvs are built in; images and events read class folders of your own; own: see reader"""
    path: Annotated[Path | None, arg(aliases=["--data"])] = None
    """folder of the data set, in the layout of its official distribution"""
    validation: int = 0
    """size of the validation set, drawn from the training samples; it selects the best epoch (digits: fixed split)"""
    test: int = 0
    """size of the test set, drawn from the training samples, if the data set has no test set of its own"""
    subset: Annotated[int | None, arg(aliases=["--subset"])] = None
    """number of training samples to keep; the validation and test set are reduced by the same factor"""
    size: int | None = None
    """resize samples to this side in pixels, 8 to 4096; None: their own size, and 224 for image files"""
    frames: Literal["number", "time"] = "number"
    """how a recording is cut into T frames: with equal numbers of events, or of equal duration"""
    sensor: tuple[int, int] | None = None
    """height and width of the sensor in pixels, 1 to 4096, for events of your own"""
    broken: Literal["stop", "skip"] = "stop"
    """what to do about a broken file: stop and name it, or skip it and count it"""
    decoded: bool = False
    """decode image files once, into a cache, at 256/224 of the size: less work in every epoch, but coarser crops"""
    cache: Path | None = None
    """folder for the caches of frames and decoded images; by default the user's cache folder"""
    workers: int | None = None
    """number of processes that decode files, 0 to 128; by default one for each core"""
    store: Literal["device", "host"] = "device"
    """where samples are stored; host: in main memory or memory-mapped files, and batches are copied to the device"""
    augment: Augment = Augment()
    reader: DataReader = Listed()
    """reads a data set of your own; --reader names it"""

    def __post_init__(self) -> None:
        for field, choices in (("frames", ("number", "time")), ("broken", ("stop", "skip")), ("store", ("device", "host"))):
            if getattr(self, field) not in choices:
                raise ValueError(f"data.{field} is {getattr(self, field)!r}: give {' or '.join(choices)}")
        for field, least, most in (
            ("validation", 0, _MOST_SAMPLES),
            ("test", 0, _MOST_SAMPLES),
            ("subset", 1, _MOST_SAMPLES),
            ("size", 8, LARGEST_SIDE),
            ("workers", 0, _MOST_WORKERS),
        ):
            value = getattr(self, field)
            if value is not None and not least <= value <= most:
                raise ValueError(f"data.{field} is {value}: give a number from {least} to {most}")
        if (self.name == "own") == isinstance(self.reader, Listed):
            raise ValueError("a data set of your own is read by code of yours: give --reader package.module:Class")
        if self.sensor is not None and not 1 <= min(self.sensor) <= max(self.sensor) <= LARGEST_SIDE:
            raise ValueError(f"data.sensor is {self.sensor}: give height and width in pixels, 1 to {LARGEST_SIDE}")
