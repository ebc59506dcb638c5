"""Data sets by name, augmentation and batches; knows nothing of networks."""

from __future__ import annotations

from pathlib import Path

from spikerate.data.augment import Augment
from spikerate.data.batches import Part, epoch_batches, plain_batches, steps_per_epoch, stream
from spikerate.data.cifar import cifar10
from spikerate.data.digits import digits
from spikerate.data.download import SOURCES, fetch
from spikerate.data.images import Images, ImageSet

SHAPES = {"digits": ((1, 8, 8), 10), "cifar10": ((3, 32, 32), 10)}
"""Of each data set, what a network needs to know: the shape (C, H, W) of a sample and the number of classes."""

__all__ = [
    "SHAPES",
    "SOURCES",
    "Augment",
    "ImageSet",
    "Images",
    "Part",
    "epoch_batches",
    "fetch",
    "load",
    "plain_batches",
    "steps_per_epoch",
    "stream",
]


def load(name: str, path: Path | None, held_out: int) -> ImageSet:
    """A data set: "digits" (built in, its split fixed) or "cifar10" (in the folder `path`).

    Raises:
        ValueError: the name is unknown, or its files are missing or broken.
    """
    if name == "digits":
        return digits()
    if name == "cifar10":
        return cifar10(path, held_out)
    raise ValueError(f"there is no data set {name!r}: give digits or cifar10")
