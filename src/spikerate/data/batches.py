"""The batches of an epoch: a pure function of (seed, epoch, rank), so there is no state that a resume could forget."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from spikerate.data.augment import Augment
from spikerate.data.images import Images, ImageSet


def steps_per_epoch(images: Images, batch: int) -> int:
    """Batches in an epoch: whole ones only, the rest of each epoch's order is left out; one if there are fewer images."""
    return max(1, len(images) // batch)


def epoch_batches(
    data: ImageSet, batch: int, augment: Augment, seed: int, epoch: int, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of the training batches, in the order of the epoch: images [B / ranks, C, H, W], labels.

    The images are augmented and normalised. `batch` is that of all ranks together; the order does not depend on `ranks`.
    """
    order = torch.from_numpy(_generator(seed, epoch).permutation(len(data.train))).to(data.train.labels.device)
    for k in range(steps_per_epoch(data.train, batch)):
        share = data.train[order[k * batch : (k + 1) * batch].tensor_split(ranks)[rank]]
        yield data.normalize(augment(to_float(share.images), stream(seed, epoch, k, rank))), share.labels


def plain_batches(data: ImageSet, images: Images, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in their own order, normalised: [B, C, H, W], labels; the last batch may be smaller."""
    for x, y in zip(images.images.split(batch), images.labels.split(batch), strict=True):
        yield data.normalize(to_float(x)), y


def to_float(images: Tensor) -> Tensor:
    """[B, C, H, W] bytes -> [0, 1], channels last."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255


def stream(*key: int) -> int:
    """The seed of a stream of random numbers of its own for each key."""
    return int(_generator(*key).integers(2**63))


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(key))
