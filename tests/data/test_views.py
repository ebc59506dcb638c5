"""Alternating flip and shifts by whole pixels: each image as often as it should be, the same however a run is divided."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikerate.data import Augment, Data, DataSet, Stored, Units, check, epoch_batches
from spikerate.data.views import Views
from spikerate.runs.config import Run
from spikerate.system.dist import Ranks


def by_hand(x: Tensor, flip: bool, down: int, right: int) -> Tensor:
    """One sample [C, H, W], flipped and then cut out of its padded self."""
    x = (x.flip(-1) if flip else x).double()
    h, w = x.shape[-2:]
    padded = F.pad(x, (abs(right), abs(right), abs(down), abs(down)), mode="reflect")
    top, left = abs(down) - down, abs(right) - right
    return padded[:, top : top + h, left : left + w]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2))
def test_a_view_is_a_flip_and_a_cut_of_the_reflected_image(draw: Any, n: int, c: int, h: int, w: int, frames: int) -> None:
    flip = torch.tensor(draw.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    shift = torch.tensor([[draw.draw(st.integers(1 - side, side - 1)) for side in (h, w)] for _ in range(n)])
    kind = draw.draw(st.sampled_from([torch.uint8, torch.int16, torch.float32]))
    x = torch.randint(0, 256, (n, *([frames] if frames else []), c, h, w)).to(kind)
    y = Views(flip, shift)(x)
    assert y.dtype == kind and y.shape == x.shape and y.is_contiguous()
    for k in range(n):
        for before, after in zip(x[k].view(-1, c, h, w), y[k].view(-1, c, h, w), strict=True):
            assert torch.equal(after.double(), by_hand(before, bool(flip[k]), *shift[k].tolist()))


def numbered(n: int = 120, side: int = 8) -> DataSet:
    """Images that tell which they are, and how they lie: no two pixels of them all are equal."""
    pixels = torch.arange(n * side * side, dtype=torch.int32).view(n, 1, side, side)
    parts = (Stored(pixels, torch.arange(n)), Stored(pixels[:0], torch.arange(0)), Stored(pixels[:0], torch.arange(0)))
    return DataSet("numbered", *parts, tuple(map(str, range(n))), Units((0.0,), (1.0,), 1.0))


def seen(data: DataSet, augment: Augment, epoch: int, batch: int = 24, **more: Any) -> dict[int, Tensor]:
    """Index of a sample -> how it is seen in an epoch."""
    parts = itertools.chain.from_iterable(epoch_batches(data, batch, augment, 3, epoch, **more))
    return {int(k): x.long() for part in parts for k, x in zip(part.labels, part.x, strict=True)}


def test_alternating_flip_flips_each_image_in_exactly_every_other_epoch() -> None:
    data, augment = numbered(), Augment(alternating_flip=True)
    images = data.train.samples.long()  # type: ignore[attr-defined]
    flips = []
    for epoch in range(5):
        views = seen(data, augment, epoch)
        assert views.keys() == set(range(120))
        flipped = [torch.equal(views[k], images[k].flip(-1)) for k in range(120)]
        assert all(flipped[k] or torch.equal(views[k], images[k]) for k in range(120))
        flips.append(torch.tensor(flipped))
    for now, then in itertools.pairwise(flips):
        assert torch.equal(now, ~then)
    assert 40 < int(flips[0].sum()) < 80
    again, other = (Views.drawn(120, True, 0, seed, 0).flip for seed in (3, 4))
    assert torch.equal(again, flips[0]) and not torch.equal(other, flips[0])


@pytest.mark.parametrize("most", [1, 2, 7])
def test_a_shift_takes_all_values_of_its_range_and_no_others(most: int) -> None:
    data = numbered(1500)
    images = data.train.samples  # type: ignore[attr-defined]
    kept = []
    for epoch in range(2):
        shift = Views.drawn(1500, False, most, 3, epoch).shift
        assert {*shift[:, 0].tolist()} == {*shift[:, 1].tolist()} == {*range(-most, most + 1)}
        assert abs(float(torch.corrcoef(shift.T.double())[0, 1])) < 0.15
        views = seen(data, Augment(translate=most), epoch, batch=1500)
        for k in range(0, 1500, 50):
            assert torch.equal(views[k], by_hand(images[k], False, *shift[k].tolist()).long())
        kept.append(shift)
    assert not torch.equal(*kept)


def test_a_view_depends_on_seed_epoch_and_index_only() -> None:
    """Not on the batch size, the ranks, the parts of a batch, or where a run was stopped."""
    data, augment = numbered(), Augment(alternating_flip=True, translate=3)
    whole = seen(data, augment, 1)
    for n in (1, 3):
        for parts in (1, 2):
            for rank in range(n):
                steps = epoch_batches(data, 40, augment, 3, 1, Ranks(rank, n).share, parts)
                for part in itertools.chain.from_iterable(steps):
                    mine = part.labels[Ranks(rank, n).share(len(part.labels))]
                    assert all(torch.equal(x.long(), whole[int(k)]) for k, x in zip(mine, part.x, strict=True))
    later = seen(data, augment, 1, start=2)
    assert len(later) == 3 * 24 and all(torch.equal(x, whole[k]) for k, x in later.items())


@pytest.mark.parametrize("copies", [2, 3])
def test_a_batch_has_each_image_as_often_as_asked_for_and_augmented_anew(copies: int) -> None:
    data, augment = numbered(), Augment(alternating_flip=True, translate=3, repeats=copies)
    images, met = data.train.samples.long(), []  # type: ignore[attr-defined]
    batches = [part for (part,) in epoch_batches(data, 24, augment, 3, 0)]
    assert len(batches) == 120 // 24
    for part in batches:
        assert sorted(torch.unique(part.labels, return_counts=True)[1].tolist()) == [copies] * (24 // copies)
        assert len({tuple(x.flatten().tolist()) for x in part.x}) > 24 - 4, "two copies seldom have the same shift"
        met += part.labels.unique().tolist()
    assert len(set(met)) == len(met) == 120 // copies
    turned = Augment(alternating_flip=True, repeats=copies)
    for epoch in range(2):
        flips: dict[int, list[bool]] = {}
        for (part,) in epoch_batches(data, 24, turned, 3, epoch):
            for k, x in zip(part.labels.tolist(), part.x.long(), strict=True):
                flips.setdefault(k, []).append(torch.equal(x, images[k].flip(-1)))
        first = Views.drawn(120, True, 0, 3, epoch).flip
        assert all(own == [bool(first[k]) ^ bool(c % 2) for c in range(copies)] for k, own in flips.items())


def test_what_is_drawn_for_blocks_comes_after_it() -> None:
    data, cut = numbered(), Augment(cutout=3, alternating_flip=True, translate=2)
    plain, both = seen(data, replace(cut, cutout=0), 0), seen(data, cut, 0)
    for k, x in both.items():
        assert torch.equal(x[x != 0], plain[k][x != 0])
    assert any((x == 0).sum() > 1 for x in both.values())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Augment(translate=-1), "augment.translate is -1: give a number of pixels from 0 to 4096"),
        (lambda: Augment(flip=True, alternating_flip=True), "augment.flip and augment.alternating_flip do the same"),
        (lambda: Augment(crop=4, translate=2), "augment.crop and augment.translate do the same in two ways: turn one"),
        (lambda: Augment(repeats=0), "augment.repeats is 0: give a number of copies >= 1"),
        (lambda: Run(batch=32, data=Data(augment=Augment(repeats=3))), "32 with data.augment.repeats=3: give a mul"),
        (lambda: check(Data("cifar10", augment=Augment(translate=32))), "translate is 32, wider .* at most 31 pixels"),
        (lambda: check(Data("cifar10", size=16, augment=Augment(translate=16))), "give at most 15 pixels"),
    ],
)
def test_what_can_not_be_is_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
