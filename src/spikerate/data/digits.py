"""The built-in data set: 1,797 handwritten digits of 8 x 8 pixels."""

from __future__ import annotations

import hashlib
import io
from importlib.resources import files

import numpy as np
import torch

from spikerate.data.samples import DataSet, Stored, Units


def digits() -> DataSet:
    """Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998; UCI, CC BY 4.0): 8 x 8, one channel, 10 classes.

    The split is part of the file: 1,257 training, 180 validation and 360 test images, drawn once, class by class.
    """
    raw = files("spikerate.data").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(raw), allow_pickle=False) as file:
        images, labels, part = file["images"], file["labels"], file["part"]
    images = np.round(images * (255 / 16)).astype(np.uint8)[:, None]

    def take(k: int) -> Stored:
        return Stored(torch.from_numpy(images[part == k]), torch.from_numpy(labels[part == k]).long())

    return DataSet(
        name="digits",
        train=take(0),
        validation=take(1),
        test=take(2),
        classes=tuple("0123456789"),
        units=Units((0.305,), (0.376,)),
        licence="CC BY 4.0, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, doi 10.24432/C50P49",
        checksums={"digits.npz": hashlib.sha256(raw).hexdigest()},
        split="1,257 / 180 / 360 images, fixed in the file, the same shares of every class",
    )
