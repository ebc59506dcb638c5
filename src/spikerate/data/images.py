"""Image sets that are kept whole, as bytes, on the device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Images and their labels.

    Attributes:
        images: [N, C, H, W] uint8.
        labels: [N] int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Images:
        return Images(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Images:
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set: training, held-out and test images, and what is known of them.

    Attributes:
        train, held_out, test: disjoint; the held-out images come from the training set.
        classes: K names.
        mean, std: of each channel, in units of the full scale, for normalisation.
        licence: of the data.
        checksums: file name -> sha256 of the files read.
        split: how the held-out images were drawn.
    """

    name: str
    train: Images
    held_out: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    checksums: dict[str, str]
    split: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.train.images.shape[1:]
        return c, h, w

    def to(self, device: torch.device) -> ImageSet:
        return replace(self, train=self.train.to(device), held_out=self.held_out.to(device), test=self.test.to(device))

    def normalize(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> zero mean and unit deviation in each channel."""
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


def hold_out(images: Images, n: int) -> tuple[Images, Images, str]:
    """Split off `n` images, drawn once and for all by a generator of seed 0, whatever the run's seed.

    Returns:
        the rest, the held-out images, and a sentence that says how they were drawn.

    Raises:
        ValueError: n is negative, or leaves nothing to train on.
    """
    if not 0 <= n < len(images):
        raise ValueError(f"data.held_out is {n}: give a number from 0 to {len(images) - 1}, the training images less one")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    index = order[:n].sort().values
    digest = hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16]
    how = f"{n} of {len(images)} training images, NumPy default_rng(0).permutation, sha256 of the sorted indices {digest}"
    return images[order[n:].sort().values], images[index], how
