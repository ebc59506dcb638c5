"""Mixup and CutMix: each sample of a batch mixed with another one, and the weights that the labels then have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """How the samples of a batch are mixed: sample k keeps the weight `keep[k]`, and nothing inside `box[k]`.

    Attributes:
        partner: [N] int64, the sample that it is mixed with, perhaps itself.
        keep: [N] float64, its own weight outside the box: Beta for Mixup, 1 for CutMix.
        box: [N, 4] int64, first row, row after the last, first column and column after the last; empty for Mixup.
        side: height and width of a sample.
    """

    partner: Tensor
    keep: Tensor
    box: Tensor
    side: tuple[int, int]

    @classmethod
    def drawn(cls, n: int, group: int, mixup: float, cutmix: float, side: tuple[int, int], seed: int) -> Mixture:
        """The mixture of a batch of n samples, by Mixup, by CutMix, or by one of both at random for each sample.

        Partners are drawn within groups of `group` samples; weight and box are a sample's own. The box of CutMix has the
        sides `sqrt(1 - lambda)` of the sample's around a random pixel, and is clipped at the border.

        Args:
            mixup, cutmix: lambda is drawn from Beta(a, a) with this a; 0 if there is no such mixing.

        References: Zhang et al., ICLR 2018 (Mixup); Yun et al., ICCV 2019 (CutMix).
        """
        draw = np.random.default_rng(seed)
        partner = np.argsort(draw.random(n) + np.arange(n) // group)
        cuts = draw.random(n) < (0 if not cutmix else 0.5 if mixup else 1)
        keep = np.where(cuts, 1.0, draw.beta(mixup, mixup, n) if mixup else 1.0)
        box = np.zeros((n, 4), np.int64)
        if cutmix:
            part = np.sqrt(1 - draw.beta(cutmix, cutmix, n))
            for axis, length in enumerate(side):
                cut = np.where(cuts, (length * part).astype(np.int64), 0)
                first = draw.integers(length, size=n) - cut // 2
                box[:, 2 * axis : 2 * axis + 2] = np.stack([first, first + cut], 1).clip(0, length)
        return cls(torch.from_numpy(partner), torch.from_numpy(keep), torch.from_numpy(box), side)

    def __getitem__(self, part: slice) -> Mixture:
        """The mixture of some groups of the batch."""
        first = part.start or 0
        return Mixture(self.partner[part] - first, self.keep[part], self.box[part], self.side)

    @property
    def share(self) -> Tensor:
        """[N] float64: a sample's own share of what it becomes, the mean over its pixels, and the weight of its label."""
        top, bottom, left, right = self.box.unbind(1)
        area = (bottom - top) * (right - left)
        return self.keep * (1 - area / (self.side[0] * self.side[1]))

    def __call__(self, x: Tensor) -> Tensor:
        """The mixtures of samples x [N, (T,) C, H, W] in floating point; all frames of a sample alike."""
        top, bottom, left, right = (edge.unsqueeze(1) for edge in self.box.to(x.device).unbind(1))
        rows, columns = (torch.arange(length, device=x.device) for length in self.side)
        inside = ((rows >= top) & (rows < bottom)).unsqueeze(2) & ((columns >= left) & (columns < right)).unsqueeze(1)
        keep = self.keep.to(x.device, x.dtype).view(-1, 1, 1)
        own = torch.where(inside, 0, keep).view(len(x), *[1] * (x.dim() - 3), *self.side)
        return x[self.partner.to(x.device)].lerp(x, own)  # exact where the share is 0 or 1

    def labels(self, labels: Tensor, num_classes: int) -> Tensor:
        """Labels [N] of the samples -> weights of the classes [N, K] float32, which sum to 1."""
        own = F.one_hot(labels, num_classes).to(torch.float32)
        share = self.share.to(labels.device, torch.float32).unsqueeze(1)
        return share * own + (1 - share) * own[self.partner.to(labels.device)]
