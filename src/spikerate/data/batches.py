"""The batches of an epoch: a pure function of (seed, epoch), so there is no state that a resume could forget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikerate.data.augment import Augment
from spikerate.data.images import Images, ImageSet

_AUGMENT = 0
_BLOCK = 32
"""Images that are augmented together: blocks of a batch, and not shares of ranks, so that ranks change nothing."""


@dataclass(frozen=True)
class Part:
    """This rank's share of a part of a batch.

    Attributes:
        x: [n, C, H, W], augmented and normalised.
        labels: [N] of the whole part, those of the other ranks too.
    """

    x: Tensor
    labels: Tensor


def steps_per_epoch(images: Images, batch: int) -> int:
    """Batches in an epoch: whole ones only, the rest of each epoch's order is left out; one if there are fewer images."""
    return max(1, len(images) // batch)


def epoch_batches(
    data: ImageSet,
    batch: int,
    augment: Augment,
    seed: int,
    epoch: int,
    share: Callable[[int], slice] = slice,
    parts: int = 1,
    start: int = 0,
    device: torch.device | None = None,
) -> Iterator[list[Part]]:
    """The training batches of an epoch in its order, each in parts, of which this rank gets its share.

    Order and augmentation depend neither on the ranks nor on the parts.

    Args:
        batch: images of all ranks and parts together.
        share: size -> which of so many images are this rank's; all by default.
        parts: how many each batch is divided into.
        start: the first batch to give.
        device: where the parts are wanted; where the images are by default.
    """
    images = data.train
    device = device or images.labels.device
    order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(images))).to(images.labels.device)
    for k in range(start, steps_per_epoch(images, batch)):
        chosen = order[k * batch : (k + 1) * batch]
        edges = [len(chosen) * p // parts for p in range(parts + 1)]
        done = []
        for a, b in itertools.pairwise(edges):
            mine = share(b - a)
            own = range(*slice(a + (mine.start or 0), a + mine.stop).indices(len(chosen)))
            x = data.normalize(_augmented(images, chosen, own, augment, (seed, _AUGMENT, epoch, k), device))
            done.append(Part(x, images.labels[chosen[a:b]].to(device)))
        yield done


def _augmented(
    images: Images, chosen: Tensor, own: range, augment: Augment, key: tuple[int, ...], device: torch.device
) -> Tensor:
    """The images `own` of the batch `chosen`, by augmenting each block that has one of them."""
    first, last = own.start // _BLOCK, -(-own.stop // _BLOCK)
    blocks = [chosen[k * _BLOCK : (k + 1) * _BLOCK] for k in range(first, last)]
    x = [augment(to_float(images.images[b].to(device)), stream(*key, first + k)) for k, b in enumerate(blocks)]
    return torch.cat(x)[own.start - first * _BLOCK : own.stop - first * _BLOCK]


def plain_batches(data: ImageSet, images: Images, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in their own order, normalised, on the device: [B, C, H, W], labels; the last batch may be smaller."""
    for x, y in zip(images.images.split(batch), images.labels.split(batch), strict=True):
        yield data.normalize(to_float(x.to(device))), y.to(device)


def to_float(images: Tensor) -> Tensor:
    """[B, C, H, W] bytes -> [0, 1], channels last."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255


def stream(*key: int) -> int:
    """The seed of a stream of random numbers of its own for each key."""
    return int(np.random.default_rng(np.random.SeedSequence(key[0], spawn_key=key[1:])).integers(2**63))
