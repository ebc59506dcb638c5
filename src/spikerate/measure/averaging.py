"""Test-time averaging: the mean of the logits that a network has for several views of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spikerate.data import Views

Averaging = Literal["flip", "flip-shift"]


@dataclass(frozen=True)
class View:
    """A sample, perhaps flipped horizontally, then shifted by whole pixels down and to the right; with its weight."""

    weight: float
    flip: bool = False
    shift: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The view of x [B, (T,) C, H, W]."""
        if not (self.flip or self.shift):
            return x
        return Views(torch.full((len(x),), self.flip), torch.full((len(x), 2), self.shift))(x)


VIEWS: Mapping[Averaging | None, tuple[View, ...]] = {
    None: (View(1.0),),
    "flip": (View(0.5), View(0.5, True)),
    "flip-shift": (
        *(View(0.25, flip) for flip in (False, True)),
        *(View(0.125, flip, shift) for shift in (-1, 1) for flip in (False, True)),
    ),
}
"""The views of each way of averaging, as in Keller Jordan 2024, arXiv 2404.00498; their weights sum to 1."""


def views_of(x: Tensor, averaging: Averaging | None) -> Iterator[tuple[float, Tensor]]:
    """The views of samples x [B, (T,) C, H, W] with their weights."""
    return ((view.weight, view(x)) for view in VIEWS[averaging])


def check_averaging(averaging: Averaging | None, shape: tuple[int, int, int]) -> None:
    """Raise `ValueError` where samples [C, H, W] can't be averaged over these views."""
    if averaging not in VIEWS:
        raise ValueError(f"averaging is {averaging!r}: give flip, flip-shift or None")
    if averaging == "flip-shift" and min(shape[1:]) < 2:
        raise ValueError("averaging is flip-shift, and samples of one row or column can't be shifted: give flip")
