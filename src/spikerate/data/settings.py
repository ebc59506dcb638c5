"""What data set a run is trained on, and what is made of it: the settings of the command line and of `run.json`."""

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
    """The data set, and what is made of it."""

    name: Literal[
        "digits",
        "cifar10",
        "cifar100",
        "mnist",
        "fashion-mnist",
        "imagenet",
        "images",
        "digits-dvs",
        "cifar10-dvs",
        "n-mnist",
        "dvs128-gesture",
        "events",
        "own",
    ] = "digits"
    """digits and digits-dvs are built in; images and events are class folders of your own, own is what reader reads"""
    path: Annotated[Path | None, arg(aliases=["--data"])] = None
    """folder of the data set, in the layout of its official distribution"""
    validation: int = 0
    """training samples set aside to choose the best epoch by, the validation set; digits has its own fixed split"""
    test: int = 0
    """samples drawn for the test, where the set has no split of its own"""
    subset: Annotated[int | None, arg(aliases=["--subset"])] = None
    """so many training samples only; validation and test samples are cut down by the same share"""
    size: int | None = None
    """side in pixels that samples are brought to, 8 to 4096; None: as they are, and 224 for image files"""
    frames: Literal["number", "time"] = "number"
    """how a recording is cut into T frames: equal numbers of events, or equal times"""
    sensor: tuple[int, int] | None = None
    """height and width of the sensor, for events of your own, 1 to 4096 pixels"""
    broken: Literal["stop", "skip"] = "stop"
    """what to do about a broken file: stop and name it, or leave it out and count it"""
    decoded: bool = False
    """decode image files once, into the cache, at 256/224 of the size: less work in every epoch, coarser crops"""
    cache: Path | None = None
    """folder of the caches of frames and decoded images; the user's cache folder by default"""
    workers: int | None = None
    """processes that decode files, 0 to 128; by default one for each core"""
    store: Literal["device", "host"] = "device"
    """where samples are kept; host: in main memory or mapped files, and each rank's share of a batch is copied"""
    augment: Augment = Augment()
    reader: DataReader = Listed()

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
