"""Augmentation of a whole batch, on its device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from kornia.augmentation import RandomCrop, RandomHorizontalFlip
from kornia.augmentation.auto import AutoAugment
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Crop, flip, AutoAugment and Cutout, in this order; each off by default."""

    crop: int = 0
    """random crop at the image's own size after padding by so many pixels"""
    flip: bool = False
    """horizontal flip of each image with probability 1/2"""
    autoaugment: Literal["cifar10"] | None = None
    """AutoAugment policy (Cubuk et al., CVPR 2019); each group of 8 images draws its own sub-policy"""
    cutout: int = 0
    """side of the square set to zero around a random pixel (DeVries and Taylor, 2017)"""

    def __post_init__(self) -> None:
        for name, value in (("crop", self.crop), ("cutout", self.cutout)):
            if value < 0:
                raise ValueError(f"augment.{name} is {value}: give a number of pixels >= 0")

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """Augment a batch; a function of the batch and the seed alone.

        Args:
            x: [B, C, H, W] in [0, 1]; C = 3 for AutoAugment.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            if self.crop:
                x = RandomCrop(tuple(x.shape[-2:]), padding=self.crop)(x)
            if self.flip:
                x = RandomHorizontalFlip()(x)
            if self.autoaugment:
                x = torch.cat([_autoaugment(self.autoaugment)(group) for group in x.split(8)])
            if self.cutout:
                x = x * _outside(x, self.cutout)
        return x


@cache
def _autoaugment(policy: str) -> AutoAugment:
    return AutoAugment(policy)


def _outside(x: Tensor, side: int) -> Tensor:
    """[B, 1, H, W], 0 in a square around a random pixel, clipped at the border, and 1 elsewhere."""
    b, _, h, w = x.shape
    y0, x0 = (torch.randint(0, n, (b, 1)).to(x.device) - side // 2 for n in (h, w))
    rows = (torch.arange(h, device=x.device) - y0) // side == 0
    columns = (torch.arange(w, device=x.device) - x0) // side == 0
    return (~(rows[:, None, :, None] & columns[:, None, None, :])).to(x.dtype)
