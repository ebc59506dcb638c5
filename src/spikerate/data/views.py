"""Views of samples by whole pixels, flipped and shifted: a whole batch by one gather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikerate.data.streams import Stream, stream


@dataclass(frozen=True, eq=False)
class Views:
    """How samples are seen: `views[index](x)` are the views of the samples x with these indices.

    Attributes:
        flip: [N] bool, whether a sample is flipped horizontally.
        shift: [N, 2] int64, pixels by which it is then shifted down and to the right, each less than the sample's side.
    """

    flip: Tensor
    shift: Tensor

    @classmethod
    def drawn(cls, n: int, alternate: bool, most: int, seed: int, epoch: int, copies: int = 1) -> Views:
        """The views of n training samples in an epoch; they depend on the seed, the epoch and a sample's index only.

        With repeated augmentation, sample k has the views `copies * k` to `copies * k + copies - 1`; flips alternate there.

        With `alternate`, a sample is flipped if its random bit, the same in all epochs, plus the number of the epoch is
        odd: in any two epochs that follow each other, the network sees each sample once as it is and once flipped. Each
        sample is shifted by its own random -most..most pixels along both axes.

        Reference: alternating flip and random translation, Keller Jordan 2024, arXiv 2404.00498.
        """
        flip, shift = np.zeros(n * copies, bool), np.zeros((n * copies, 2), np.int64)
        if alternate:
            first = np.random.default_rng(stream(seed, Stream.FLIP)).integers(2, size=(n, 1)) + epoch
            flip = ((first + np.arange(copies)) % 2 == 1).reshape(-1)
        if most:
            shift = np.random.default_rng(stream(seed, Stream.SHIFT, epoch)).integers(-most, most + 1, shift.shape)
        return cls(torch.from_numpy(flip), torch.from_numpy(shift))

    def __getitem__(self, index: Tensor) -> Views:
        return Views(self.flip[index], self.shift[index])

    def __call__(self, x: Tensor) -> Tensor:
        """The views of x [N, (T,) C, H, W] of any type; all frames of a sample alike.

        What a shift brings in is the reflection of the sample at its border, without the border's own pixels.
        """
        h, w = x.shape[-2:]
        flip, shift = self.flip.to(x.device), self.shift.to(x.device)
        rows = _reflected(torch.arange(h, device=x.device) - shift[:, :1], h)  # [N, H]
        columns = _reflected(torch.arange(w, device=x.device) - shift[:, 1:], w)
        columns = torch.where(flip.unsqueeze(1), w - 1 - columns, columns)
        places = (rows.unsqueeze(2) * w + columns.unsqueeze(1)).view(len(x), 1, h * w)
        pixels = x.reshape(len(x), -1, h * w)
        return pixels.gather(2, places.expand_as(pixels)).view(x.shape)


def _reflected(places: Tensor, n: int) -> Tensor:
    """Places from 1 - n to 2 n - 2 along an axis of n pixels, reflected into 0..n - 1."""
    return n - 1 - (n - 1 - places.abs()).abs()
