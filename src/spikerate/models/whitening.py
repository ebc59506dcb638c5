"""A first convolution that whitens the patches of images, computed from training images instead of learned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate.system.ranges import check_count, check_positive

_MOST = 4096
"""Largest number of values in a patch; its covariance has the square of it."""


@runtime_checkable
class FromImages(Protocol):
    """A module of a network whose weights, or some of them, are computed from training images before the first step."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the weights.

        Args:
            batches: training images [B, C, H, W], normalised as the network gets them, without augmentation.
        """


class Whitening(nn.Sequential):
    """A frozen convolution to the principal components of patches, each divided by its deviation, in both signs.

    With the eigenvectors v and eigenvalues l of the patches' second moments E[p p^T], largest first, the kernels are
    v / sqrt(l + eps) and their negatives: neurons, which do not fire for negative currents, then see both sides. The bias is
    learned. It is a container of one `nn.Conv2d`, which is exported like any other. Before `fit` its kernels are random.

    Input [B, in_channels, H, W], output [B, out_channels, H + 2 padding - kernel + 1, ...]. Reference: the first layer of
    cifar10-airbench (2 x 2 patches, 24 channels); there the bias is frozen after three epochs, here it is learned on.

    Args:
        in_channels: C.
        out_channels: an even number, at most 2 C kernel^2, which is the default; fewer are the largest components.
        kernel: height and width of a patch.
        padding: zeros around the image.
        eps: added to the eigenvalues, > 0.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int | None = None, kernel: int = 2, padding: int = 0, eps: float = 5e-4
    ) -> None:
        check_count("in_channels", in_channels, "a number of channels", _MOST)
        check_count("kernel", kernel, "a number of pixels", _MOST)
        check_count("padding", padding, "a number of pixels", _MOST, least=0)
        check_positive("eps", eps)
        values = in_channels * kernel**2
        check_count("in_channels kernel^2", values, "a number of values in a patch", _MOST)
        out = 2 * values if out_channels is None else out_channels
        if not (2 <= out <= 2 * values and out % 2 == 0):
            raise ValueError(
                f"out_channels is {out}: give an even number from 2 to {2 * values}, for each component both signs"
            )
        super().__init__(nn.Conv2d(in_channels, out, kernel, padding=padding))
        self.convolution.weight.requires_grad = False
        self.eps = eps

    @property
    def convolution(self) -> nn.Conv2d:
        """The convolution, whose weight is [out_channels, C, kernel, kernel]."""
        (only,) = self
        assert isinstance(only, nn.Conv2d)
        return only

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Set the kernels.

        Args:
            batches: images [B, C, H, W]; of recordings [B, T, C, H, W] all frames.

        Raises:
            ValueError: there is no patch, or a value is not finite.
        """
        weight, side = self.convolution.weight, self.convolution.weight.shape[-1]
        values = weight[0].numel()
        moments, n = torch.zeros(values, values, dtype=torch.float64), 0
        for batch in batches:
            images = batch.flatten(0, -4).float()
            if min(images.shape[-2:]) < side:
                raise ValueError(f"whitening {side} x {side} patches needs larger images than {list(images.shape[-2:])}")
            patches = F.unfold(images, side).transpose(0, 1).flatten(1)  # [values, patches]
            moments += (patches @ patches.T).double().cpu()
            n += patches.shape[1]
        if not n or not moments.isfinite().all():
            raise ValueError("whitening needs images, and their values finite")
        variances, axes = torch.linalg.eigh(moments / n)
        chosen = len(weight) // 2
        variances, axes = variances.flip(0)[:chosen].clamp(min=0), axes.flip(1)[:, :chosen]
        # The sign of an eigenvector is arbitrary: its largest component is made positive.
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        kernels = (axes / (variances + self.eps).sqrt()).T.reshape(chosen, *weight.shape[1:])
        weight.copy_(torch.cat([kernels, -kernels]))
        assert self.convolution.bias is not None
        self.convolution.bias.zero_()
