"""Resizing stored samples to the size of a network's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomResizedCrop
from torch import Tensor

MARGIN = 256 / 224
"""For a centre crop, an image's short side is first resized to this multiple of the crop's side."""


@dataclass(frozen=True)
class Resize:
    """Resize to `size` x `size`, bilinearly with antialiasing; the same in training and evaluation."""

    size: int

    def __call__(self, x: Tensor, seed: int | None) -> Tensor:
        return F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)


def resized(x: Tensor, side: int) -> Tensor:
    """Samples [B, (T,) C, H, W] in floating point as [B, (T,) C, side, side]; all frames of a sample alike."""
    planes = Resize(side)(x.flatten(1, -3), None)
    return planes.view(*x.shape[:-2], side, side)


@dataclass(frozen=True)
class Crop:
    """Crop images to `size` x `size`: with a seed a random resized crop (Szegedy et al., CVPR 2015), else the centre."""

    size: int

    def __call__(self, x: Tensor, seed: int | None) -> Tensor:
        if seed is None:
            top, left = ((side - self.size) // 2 for side in x.shape[-2:])
            return x[..., top : top + self.size, left : left + self.size]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            cropped: Tensor = RandomResizedCrop((self.size, self.size), cropping_mode="resample")(x)
            return cropped
