"""Bringing stored samples to the size that a network sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomResizedCrop
from torch import Tensor

MARGIN = 256 / 224
"""The side to which the short side of an image is brought before its middle is cut out, over the side of the cut."""


@dataclass(frozen=True)
class Resize:
    """Bilinear, with antialiasing, to `size` x `size`; the same for training and evaluation."""

    size: int

    def __call__(self, x: Tensor, seed: int | None) -> Tensor:
        return F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Crop:
    """`size` x `size` out of larger images: by a seed a random resized crop (Szegedy et al., CVPR 2015), else the middle."""

    size: int

    def __call__(self, x: Tensor, seed: int | None) -> Tensor:
        if seed is None:
            top, left = ((side - self.size) // 2 for side in x.shape[-2:])
            return x[..., top : top + self.size, left : left + self.size]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cropped: Tensor = RandomResizedCrop((self.size, self.size), cropping_mode="resample")(x)
            return cropped
