"""Test-time averaging: the logits of the views, their spikes and operations, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import BPTT, LIF
from spikerate.data import Data, DataSet, Stored, load
from spikerate.measure.averaging import VIEWS, Averaging, check_averaging
from spikerate.measure.evaluate import answers
from spikerate.runs.config import Run
from spikerate.runs.experiment import measure

CPU = torch.device("cpu")
RUN = Run(T=3)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    data = load(Data("digits", subset=200), 1).to(CPU)
    assert len(data.test) and len(data.validation)
    return data


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), LIF(), nn.Flatten(), nn.Linear(256, 10)).eval()


def seen(x: Tensor, averaging: Averaging) -> list[tuple[float, Tensor]]:
    """The views of x [B, C, H, W] by padding and cutting."""
    around = F.pad(x, (1, 1, 1, 1), mode="reflect")
    h, w = x.shape[-2:]
    if averaging == "flip":
        return [(1 / 2, x), (1 / 2, x.flip(-1))]
    mirrored = F.pad(x.flip(-1), (1, 1, 1, 1), mode="reflect")
    moved = [p[..., k : k + h, k : k + w] for p in (around, mirrored) for k in (0, 2)]
    return [(1 / 4, x), (1 / 4, x.flip(-1)), *((1 / 8, view) for view in moved)]


@pytest.mark.parametrize("averaging", ["flip", "flip-shift"])
def test_the_logits_are_the_mean_of_those_of_the_views(averaging: Averaging, digits: DataSet, network: nn.Module) -> None:
    x = digits.units.normalize(digits.units.scale(digits.test.samples))  # type: ignore[attr-defined]
    with torch.no_grad():
        steps = sum(
            weight * BPTT()(network, view.expand(3, *view.shape)).steps.double() for weight, view in seen(x, averaging)
        )
    expected = steps.cumsum(0).argmax(-1).T  # type: ignore[union-attr]
    found = answers(network, digits, digits.test, 3, averaging=averaging, batch=17).found
    assert torch.equal(found, expected)
    plain = answers(network, digits, digits.test, 3).found
    assert not torch.equal(found, plain)
    assert sum(view.weight for view in VIEWS[averaging]) == 1


def test_spikes_and_operations_are_those_of_all_views_and_stand_apart(digits: DataSet, network: nn.Module) -> None:
    plain = measure(network, digits, RUN)
    both = measure(network, digits, replace(RUN, averaging="flip"))
    mirrored = replace(digits, test=Stored(digits.test.samples.flip(-1), digits.test.labels))  # type: ignore[attr-defined]
    other = measure(network, mirrored, RUN)
    assert plain.averaged is None and both.averaged is not None
    of = both.averaged.measured
    assert of.ledger.total() == plain.ledger.total() + other.ledger.total() > 0
    assert of.spikes == pytest.approx(plain.spikes + other.spikes)
    assert of.energy.snn_nj == pytest.approx(plain.energy.snn_nj + other.energy.snn_nj)
    assert of.energy.dense == 2 * plain.energy.dense
    assert of.ledger.mean_rate() == pytest.approx((plain.ledger.mean_rate() + other.ledger.mean_rate()) / 2)
    best = {"epoch": 1, "validation": 0.5}
    record = both.record(network, best)
    apart = record.pop("averaged")
    assert record == plain.record(network, best)
    held_out = answers(network, digits, digits.validation, 3, averaging="flip").at_step[-1]
    assert (apart["averaging"], apart["views"], apart["validation_accuracy"]) == ("flip", 2, held_out.value)
    assert apart["test_accuracy"] == of.accuracy.value and apart["spikes_per_image"] == of.spikes
    assert measure(network, digits, replace(RUN, averaging="flip-shift")).averaged.views == 6  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: replace(RUN, averaging="both"), "averaging is 'both': give flip, flip-shift or None"),
        (lambda: check_averaging("flip-shift", (3, 1, 9)), "samples of one row or column can't be shifted: give flip"),
    ],
)
def test_what_can_not_be_is_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
