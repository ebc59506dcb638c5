"""Mixup and CutMix: every pixel and every label weight by hand, and the same on any number of ranks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikerate.data import Augment, Data, load, steps_per_epoch
from spikerate.data.batches import Part, epoch_batches
from spikerate.data.mixing import Mixture
from spikerate.system.dist import Ranks


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    group=st.integers(1, 40),
    mixup=st.sampled_from([0, 1e-9, 0.2, 1, 100]),
    cutmix=st.sampled_from([0, 1e-9, 1, 100]),
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    frames=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_every_pixel_and_every_weight(
    n: int, group: int, mixup: float, cutmix: float, side: tuple[int, int], frames: int, seed: int
) -> None:
    mixture = Mixture.drawn(n, group, mixup, cutmix, side, seed)
    x = torch.randn(n, *([frames] if frames else []), 2, *side, dtype=torch.float64)
    labels = torch.randint(0, 4, (n,))
    y, weights = mixture(x), mixture.labels(labels, 4)
    assert sorted(mixture.partner.tolist()) == list(range(n))
    for k in range(n):
        other, keep = int(mixture.partner[k]), float(mixture.keep[k])
        top, bottom, left, right = mixture.box[k].tolist()
        assert k // group == other // group
        assert 0 <= keep <= 1 and 0 <= top <= bottom <= side[0] and 0 <= left <= right <= side[1]
        own = np.full(side, keep)
        own[top:bottom, left:right] = 0
        by_hand = torch.from_numpy(own) * x[k] + torch.from_numpy(1 - own) * x[other]
        assert torch.allclose(y[k], by_hand, rtol=1e-12, atol=1e-12)
        expected = torch.zeros(4, dtype=torch.float64)
        expected[labels[k]] += own.mean()
        expected[labels[other]] += 1 - own.mean()
        assert torch.allclose(weights[k].double(), expected, atol=1e-6)
    assert torch.allclose(weights.sum(1), torch.ones(n), atol=1e-6) and float(weights.min()) >= 0
    empty = (mixture.box[:, 1] == mixture.box[:, 0]) | (mixture.box[:, 3] == mixture.box[:, 2])
    if not mixup:
        assert torch.equal(mixture.keep, torch.ones(n, dtype=torch.float64))
        assert bool(((y == x) | (y == x[mixture.partner])).all()), "a pixel comes from one of both"
    if not cutmix:
        assert bool(empty.all())


def test_the_shares_are_drawn_as_the_papers_have_them() -> None:
    mixed = Mixture.drawn(4000, 32, 1.0, 0, (32, 32), 0).share
    assert abs(float(mixed.mean()) - 1 / 2) < 0.02 and abs(float(mixed.var()) - 1 / 12) < 0.01  # Beta(1, 1)
    sharp = Mixture.drawn(4000, 32, 0.2, 0, (32, 32), 0).share
    assert abs(float(sharp.var()) - 1 / (4 * (2 * 0.2 + 1))) < 0.01
    both = Mixture.drawn(4000, 32, 1.0, 1.0, (32, 32), 0)
    cuts = both.keep == 1
    assert abs(float(cuts.double().mean()) - 1 / 2) < 0.03
    top, bottom, left, right = both.box.double().unbind(1)
    area = (bottom - top) * (right - left) / 32**2
    assert float(area[~cuts].max()) == 0 and 0.2 < float(area[cuts].mean()) < 0.5  # half of the image, less what is clipped


@given(ranks=st.integers(1, 5), parts=st.integers(1, 3), batch=st.integers(30, 150))
@settings(max_examples=10, deadline=None)
def test_ranks_and_parts_mix_alike(ranks: int, parts: int, batch: int) -> None:
    data, augment = load(Data("digits"), 1), Augment(mixup=0.7, cutmix=1.0, translate=1, cutout=3)

    def first(share: Any = slice, parts: int = 1) -> list[Part]:
        return next(epoch_batches(data, batch, augment, 5, 2, share, parts))

    (whole,) = first()
    assert whole.labels.shape == (batch, 10) and whole.labels.dtype == torch.float32
    divided = [first(Ranks(rank, ranks).share, parts) for rank in range(ranks)]
    assert torch.equal(torch.cat([rank[p].x for p in range(parts) for rank in divided]), whole.x)
    for rank in divided:
        assert torch.equal(torch.cat([part.labels for part in rank]), whole.labels)


def test_each_step_and_epoch_mixes_anew_and_a_stop_changes_nothing() -> None:
    data, augment = load(Data("digits"), 1), Augment(mixup=1.0)

    def labels(epoch: int, start: int = 0) -> list[torch.Tensor]:
        return [part.labels for (part,) in epoch_batches(data, 64, augment, 0, epoch, start=start)]

    first, again, other = labels(0), labels(0, start=4), labels(1)
    assert len(first) == steps_per_epoch(data.train, 64)
    assert all(torch.equal(a, b) for a, b in zip(first[4:], again, strict=True))
    shares = [batch.max(1).values for batch in [*first, *other]]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(shares, 2))


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
@pytest.mark.parametrize("value", [-0.1, 101.0, float("nan")])
def test_what_can_not_be_is_a_sentence(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"augment.{field} is {value}: give a number from 0 to 100"):
        Augment(**{field: value})  # type: ignore[arg-type]
