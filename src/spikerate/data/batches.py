"""The batches of an epoch: a pure function of seed and epoch, so that a resumed run needs no state of the data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikerate.data.augment import Augment
from spikerate.data.samples import Block, DataSet, Samples
from spikerate.data.streams import Stream, stream
from spikerate.data.views import Views

_BLOCK = 32
"""Samples that are augmented together, and mixed among themselves. Blocks follow from the batch and not from the ranks,
whose number changes nothing."""


@dataclass(frozen=True)
class Part:
    """This rank's share of a part of a batch (a micro-batch of gradient accumulation).

    Attributes:
        x: [n, C, H, W] or [n, T, C, H, W], the samples of this rank, augmented and normalised.
        labels: [N] int64, the labels of the whole part, including those of the other ranks; of mixed samples [N, K] float32,
            the weights of the classes.
    """

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class _Plan:
    """What to read for a part.

    Attributes:
        chosen: [B], indices of the samples of the whole batch.
        part: which of them are the part.
        read: which of them are in the blocks that contain samples of this rank.
        own: which of those that are read are this rank's.
        blocks: these blocks.
        seeds: of their augmentation.
        mix: seed of the mixture of the batch.
    """

    chosen: Tensor
    part: slice
    read: slice
    own: slice
    blocks: list[Block]
    seeds: list[int]
    mix: int


def steps_per_epoch(samples: Samples, batch: int) -> int:
    """Batches in an epoch. An incomplete last batch is dropped; with fewer samples than a batch, there is one batch."""
    return max(1, len(samples) // batch)


def epoch_batches(
    data: DataSet,
    batch: int,
    augment: Augment,
    seed: int,
    epoch: int,
    share: Callable[[int], slice] = slice,
    parts: int = 1,
    start: int = 0,
    device: torch.device | None = None,
) -> Iterator[list[Part]]:
    """The training batches of an epoch, each divided into parts (micro-batches), with this rank's share of each part.

    Order and augmentation depend neither on the number of ranks nor on that of parts. Processes that decode files begin
    when this is called, and not only when the first batch is asked for.

    Args:
        batch: batch size, over all ranks and parts together.
        share: number of samples -> slice of those that belong to this rank; by default all.
        parts: number of parts of a batch.
        start: index of the first batch to yield.
        device: device of the parts; by default that of the labels.

    Raises:
        ValueError: a file is broken.
    """
    samples = data.train
    device = device or samples.labels.device
    order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(samples)))
    order = order.repeat_interleave(augment.repeats)[: len(order)]
    steps = [
        _plans(order[k * batch : (k + 1) * batch], share, parts, augment, (seed, epoch, k))
        for k in range(start, steps_per_epoch(samples, batch))
    ]
    blocks = samples.read((block for plan in itertools.chain(*steps) for block in plan.blocks), device)
    return _parts(data, augment, augment.views(len(samples), seed, epoch), steps, blocks, device)


def _parts(
    data: DataSet,
    augment: Augment,
    views: Views | None,
    steps: list[list[_Plan]],
    blocks: Iterator[Tensor],
    device: torch.device,
) -> Iterator[list[Part]]:
    """The parts of each step, of the blocks that are read for it."""
    for plans in steps:
        done = []
        for plan in plans:
            labels = data.train.labels[plan.chosen].to(device)
            x = torch.cat([next(blocks) for _ in plan.blocks])
            if views is not None:  # before the scaling, since bytes are moved faster than floats
                copy = torch.arange(len(plan.chosen)) % augment.repeats
                x = views[(plan.chosen * augment.repeats + copy)[plan.read]](x)
            x = data.units.scale(x)
            if augment.by_blocks:
                x = torch.cat([augment(few, seed) for few, seed in zip(x.split(_BLOCK), plan.seeds, strict=True)])
            mixture = augment.mixture(len(labels), _BLOCK, (x.shape[-2], x.shape[-1]), plan.mix)
            if mixture is not None:
                x, labels = mixture[plan.read](x), mixture.labels(labels, len(data.classes))
            done.append(Part(data.units.normalize(x[plan.own]), labels[plan.part]))
        yield done


def _plans(
    chosen: Tensor, share: Callable[[int], slice], parts: int, augment: Augment, key: tuple[int, int, int]
) -> list[_Plan]:
    """What to read of the batch `chosen` for each of its parts."""
    seed, *rest = key
    edges = [len(chosen) * p // parts for p in range(parts + 1)]
    plans = []
    for a, b in itertools.pairwise(edges):
        mine = share(b - a)
        own = range(*slice(a + (mine.start or 0), a + mine.stop).indices(len(chosen)))
        first, last = own.start // _BLOCK, -(-own.stop // _BLOCK)
        blocks = [
            Block(
                chosen[k * _BLOCK : (k + 1) * _BLOCK], stream(seed, Stream.CROP, *rest, k) if augment.resized_crop else None
            )
            for k in range(first, last)
        ]
        seeds = [stream(seed, Stream.AUGMENT, *rest, k) for k in range(first, last)]
        read = slice(first * _BLOCK, min(last * _BLOCK, len(chosen)))
        within = slice(own.start - read.start, own.stop - read.start)
        plans.append(_Plan(chosen, slice(a, b), read, within, blocks, seeds, stream(seed, Stream.MIX, *rest)))
    return plans


def plain_batches(data: DataSet, samples: Samples, batch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in their own order as batches ([B, (T,) C, H, W], labels [B]), normalised, on the device, for evaluation.

    The last batch may be smaller.
    """
    wanted = [index.split(_BLOCK) for index in torch.arange(len(samples)).split(batch)]
    blocks = samples.read((Block(index) for few in wanted for index in few), device)
    for few, y in zip(wanted, samples.labels.split(batch), strict=True):
        x = torch.cat([next(blocks) for _ in few])
        yield data.units.normalize(data.units.scale(x)), y.to(device)
