"""Augmentation of a whole batch, on its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from kornia.augmentation import RandomCrop, RandomErasing, RandomHorizontalFlip, RandomRotation
from torch import Tensor

from spikerate.data.mixing import Mixture
from spikerate.data.policies import MOST_MAGNITUDE, MOST_OPERATIONS, POLICIES, by_groups, policy_of
from spikerate.data.views import Views
from spikerate.system.codec import added
from spikerate.system.ranges import check_count, check_number

LARGEST_SIDE = 4096
"""Largest side of a sample, in pixels."""


@dataclass(frozen=True)
class Augment:
    """Shift, crop, flip, a policy, roll, rotation, Cutout, erasing and mixing, in this order. Each is off by default."""

    resized_crop: bool = False
    """crop a random part of the image, 8 to 100 % of its area, and resize it to the data's size (image files only)"""
    crop: int = 0
    """pad by this number of pixels (at most the image's side), then crop at random to the image's own size"""
    flip: bool = False
    """horizontal flip of each sample with probability 1/2"""
    autoaugment: Literal["cifar10"] | None = None
    """AutoAugment policy (Cubuk et al., CVPR 2019); a sub-policy is drawn for each group of 8 images"""
    roll: int = 0
    """largest random cyclic shift in pixels along both axes, up to 4096; pixels that leave on one side enter on the other"""
    rotation: float = 0.0
    """largest random rotation in degrees, 0 to 180"""
    cutout: int = 0
    """side in pixels of the square set to zero around a random pixel, up to 4096 (DeVries and Taylor, 2017)"""
    one_of: bool = False
    """apply only one of roll, rotation and Cutout, drawn at random for each group of 8 samples"""
    alternating_flip: bool = added(False)
    """horizontal flip of each sample in every other epoch, at random in the first (Keller Jordan 2024, arXiv 2404.00498)"""
    translate: int = added(0)
    """shift each sample by random whole pixels, at most this number along both axes; what comes in is the reflection at the
    border (cifar10-airbench: 2); with alternating_flip the cheapest augmentation, one gather for a whole batch"""
    mixup: float = added(0.0)
    """Mixup (Zhang et al., ICLR 2018): each sample becomes lambda times itself plus 1 - lambda times another one, and so do
    the labels; lambda from Beta(a, a) with this a, 0 to 100 (the paper: 1 on CIFAR-10)"""
    cutmix: float = added(0.0)
    """CutMix (Yun et al., ICCV 2019): a box of each sample comes from another one, labels by the area, which is drawn by
    Beta(a, a) with this a, 0 to 100 (the paper: 1). With mixup, each sample gets one of both at random"""
    randaugment: tuple[int, int] | None = added(None)
    """RandAugment (Cubuk et al., NeurIPS 2020): number of operations, 1 to 14, and their magnitude, 1 to 29 of 30 (the paper
    on CIFAR-10: 3 4 or 3 5); the operations are drawn for each group of 8 images"""
    trivialaugment: bool = added(False)
    """TrivialAugment (Mueller and Hutter, ICCV 2021): one operation of RandAugment's for each group of 8 images, with a
    magnitude at random for each image"""
    erasing: float = added(0.0)
    """Random Erasing (Zhong et al., AAAI 2020): probability that a sample loses a rectangle of 2 to 33 % of its area, which
    becomes 0 (the paper: 0.5)"""
    repeats: int = added(1)
    """repeated augmentation (Hoffer et al., CVPR 2020): a batch has each image so many times, each time augmented anew; an
    epoch has as many steps as without, and so fewer images; the batch size has to be a multiple"""

    def __post_init__(self) -> None:
        for name in ("crop", "roll", "cutout", "translate"):
            value = getattr(self, name)
            if not 0 <= value <= LARGEST_SIDE:
                raise ValueError(f"augment.{name} is {value}: give a number of pixels from 0 to {LARGEST_SIDE}")
        check_count("augment.repeats", self.repeats, "a number of copies", LARGEST_SIDE)
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"augment.erasing is {self.erasing}: give a probability from 0 to 1")
        if self.randaugment is not None:
            n, magnitude = self.randaugment
            check_count("augment.randaugment", n, "a number of operations", MOST_OPERATIONS)
            check_count("augment.randaugment", magnitude, "a magnitude", MOST_MAGNITUDE)
        if len(self.policies) > 1:
            raise ValueError(f"augment has {' and '.join(self.policies)}: give one policy at most")
        for name in ("mixup", "cutmix"):
            check_number(f"augment.{name}", getattr(self, name), 0, 100)
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"augment.rotation is {self.rotation}: give an angle from 0 to 180 degrees")
        if self.one_of and len(self._moves()) < 2:
            raise ValueError("augment.one_of chooses among roll, rotation and cutout: give at least two of them")
        for one, other in (("flip", "alternating_flip"), ("crop", "translate")):
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"augment.{one} and augment.{other} do the same in two ways: turn one of them off")

    def views(self, n: int, seed: int, epoch: int) -> Views | None:
        """How the n training samples, or the copies of each, are flipped and shifted in an epoch; None if they are not."""
        if not (self.alternating_flip or self.translate):
            return None
        return Views.drawn(n, self.alternating_flip, self.translate, seed, epoch, self.repeats)

    def mixture(self, n: int, group: int, side: tuple[int, int], seed: int) -> Mixture | None:
        """How the n samples [C, *side] of a batch are mixed, each with one of its group; None if they are not."""
        if not (self.mixup or self.cutmix):
            return None
        return Mixture.drawn(n, group, self.mixup, self.cutmix, side, seed)

    @property
    def by_blocks(self) -> bool:
        """Whether calling it changes anything: there is more than views, mixture and what the reader of files does."""
        return bool(self.crop or self.flip or self.policies or self._moves() or self.erasing)

    @property
    def policies(self) -> list[str]:
        """The fields that give a policy of image operations; at most one."""
        return [name for name in POLICIES if getattr(self, name)]

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """Augment a batch by all but its views and mixture. All frames of a sample are treated alike.

        The result depends on the batch and the seed only.

        Args:
            x: [B, C, H, W] in [0, 1], C = 3 for a policy; or [B, T, C, H, W].
            seed: of the random numbers.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            planes = x.flatten(1, -3)
            if self.crop:
                planes = RandomCrop(tuple(x.shape[-2:]), padding=self.crop)(planes)
            if self.flip:
                planes = RandomHorizontalFlip()(planes)
            for name in self.policies:
                planes = by_groups(policy_of(name, getattr(self, name)), planes)
            moves = self._moves()
            if self.one_of:
                groups = planes.split(8)
                drawn = torch.randint(0, len(moves), (len(groups),)).tolist()
                planes = torch.cat([moves[k](group) for k, group in zip(drawn, groups, strict=True)])
            else:
                for move in moves:
                    planes = move(planes)
            if self.erasing:
                planes = RandomErasing(p=self.erasing)(planes)
        return planes.reshape(x.shape)

    def _moves(self) -> list[Callable[[Tensor], Tensor]]:
        moves: list[Callable[[Tensor], Tensor]] = []
        if self.roll:
            moves.append(lambda x: _rolled(x, self.roll))
        if self.rotation:
            moves.append(RandomRotation(self.rotation, p=1.0))
        if self.cutout:
            moves.append(lambda x: x * _outside(x, self.cutout))
        return moves


def _rolled(x: Tensor, most: int) -> Tensor:
    """Each sample of x [B, C, H, W] shifted cyclically along both axes by its own random -most..most pixels."""
    b, _, h, w = x.shape
    down, right = (torch.randint(-most, most + 1, (b, 1)).to(x.device) for _ in range(2))
    rows = (torch.arange(h, device=x.device) - down) % h
    columns = (torch.arange(w, device=x.device) - right) % w
    return x[torch.arange(b, device=x.device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _outside(x: Tensor, side: int) -> Tensor:
    """A mask [B, 1, H, W]: 0 in a square around a random pixel, clipped at the border, and 1 elsewhere."""
    b, _, h, w = x.shape
    y0, x0 = (torch.randint(0, n, (b, 1)).to(x.device) - side // 2 for n in (h, w))
    rows = (torch.arange(h, device=x.device) - y0) // side == 0
    columns = (torch.arange(w, device=x.device) - x0) // side == 0
    return (~(rows[:, None, :, None] & columns[:, None, None, :])).to(x.dtype)
