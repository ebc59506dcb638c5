"""Progressive resizing: the size of the images by the step, its cost, and going on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikerate import BPTT, LIF, SelfDistillation
from spikerate.cli.arguments import Train, read_train
from spikerate.data import Data, DataSet, load, resized
from spikerate.models import macs, resnet18
from spikerate.runs.config import Model, OwnNetwork, Phase, Rectified, Resolution, Run
from spikerate.runs.estimate import resolution_macs, training_flops
from spikerate.runs.experiment import check_fits
from spikerate.runs.record import RunFolder
from spikerate.runs.train import Trainer
from spikerate.system.codec import decode, encode
from support.runs import Silent, stopped_at_every_step

SMALL = Run(model=Model(width=2), epochs=2, batch=300, T=2, resolutions=(Resolution(4, 0.4), Resolution(6, 0.3)))


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(Data("digits"), 1)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 99), st.floats(1e-3, 0.24)), max_size=4),
    st.lists(st.tuples(st.integers(1, 99), st.floats(1e-3, 0.24)), max_size=4),
)
def test_resolutions_come_back_and_their_shares_are_those_of_the_steps(
    times: list[tuple[int, float]], sides: list[tuple[int, float]]
) -> None:
    run = Run(curriculum=tuple(Phase(*p) for p in times), resolutions=tuple(Resolution(*p) for p in sides))
    assert tuple(Resolution.parse(str(part)) for part in run.resolutions) == run.resolutions
    assert decode(Run, json.loads(json.dumps(encode(run)))) == run
    steps = 3000
    each = [(run.T_at(k, steps), run.side_at(k, steps)) for k in range(steps)]
    told = run.shares
    assert sum(share for share, _, _ in told) == pytest.approx(1)
    for key in {*each, *((T, side) for _, T, side in told)}:
        assert sum(s for s, *other in told if tuple(other) == key) == pytest.approx(each.count(key) / steps, abs=0.003)
    assert each[-1] == (run.T, None)


def test_operations_are_those_of_each_size() -> None:
    run = replace(SMALL, model=Model(width=4), curriculum=(Phase(1, 0.5),), T=3)
    there = resolution_macs(run, (1, 8, 8), 10)
    by_hand = {side: sum(macs(resnet18(10, 1, 4), (1, side, side)).values()) for side in (4, 6, 8)}
    assert there == {side: (by_hand[side], 0) for side in (4, 6)}
    passes = 0.4 * 3 * by_hand[4] + 0.1 * 3 * by_hand[6] + 0.2 * 5 * by_hand[6] + 0.3 * 5 * by_hand[8]
    assert training_flops(run, by_hand[8], 0, 100, 0, there) == pytest.approx(2 * passes * 100 * 2)
    esd = replace(run, loss=SelfDistillation())
    assert all(branches > 0 for _, branches in resolution_macs(esd, (1, 8, 8), 10).values())


def test_frames_are_resized_alike() -> None:
    x = torch.rand(3, 2, 8, 8)
    y = resized(x, 5)
    assert y.shape == (3, 2, 5, 5)
    assert torch.equal(resized(x.unsqueeze(1).expand(3, 4, 2, 8, 8), 5), y.unsqueeze(1).expand(3, 4, 2, 5, 5))
    assert torch.allclose(resized(torch.full((1, 1, 8, 8), 0.3), 3), torch.tensor(0.3))


@pytest.mark.parametrize("ann", [False, True], ids=["spiking", "ann"])
def test_images_have_the_size_of_their_step_and_validation_the_datas(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ann: bool
) -> None:
    run = replace(SMALL, T=1, neuron=Rectified(), rule=BPTT()) if ann else SMALL
    seen: list[int] = []
    step = Trainer._step

    def watched(self: Any, state: Any, forward: Any, parts: Any, *more: Any) -> Any:
        seen.append(parts[0].x.shape[-1])
        return step(self, state, forward, parts, *more)

    monkeypatch.setattr(Trainer, "_step", watched)
    state = Trainer(run, digits, RunFolder.create(tmp_path / "run", run, {}), Silent()).train()
    assert seen == [4, 4, 4, 6, 6, 6, 8, 8]
    assert [row["side"] for row in state.rows] == [6, 8]


def test_every_step_is_a_place_to_stop(digits: DataSet, tmp_path: Path) -> None:
    run = replace(SMALL, curriculum=(Phase(1, 0.5),))
    whole = Trainer(run, digits, RunFolder.create(tmp_path / "whole", run, {}), Silent()).train()
    parts, stops = stopped_at_every_step(run, digits, RunFolder.create(tmp_path / "parts", run, {}))
    assert stops == 7
    tensors, others = whole.tensors(), parts.tensors()
    assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []


def flat(num_classes: int, in_shape: tuple[int, int, int], neuron: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_shape[0], 2, 3, padding=1), LIF(), nn.Flatten(), nn.Linear(128, num_classes))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Resolution(0, 0.5), "resolutions.side is 0: give a number of pixels >= 1"),
        (lambda: Resolution(16, 1.5), "resolutions.share is 1.5: give a fraction"),
        (lambda: Resolution.parse("16"), "'16' is no part of a progressive resizing: give SIDE:SHARE, as 16:0.3 24:0.3"),
        (lambda: Run(resolutions=(Resolution(9, 0.5), Resolution(8, 0.5))), "9:0.5 8:0.5 leave no step to the data's size"),
        (lambda: Run(data=Data("n-mnist"), resolutions=(Resolution(9, 0.5),)), "resolutions are for images"),
        (
            lambda: Run(compile=True, resolutions=tuple(Resolution(s, 0.1) for s in (2, 3, 4, 5))),
            "have 5 different steps, each to compile: give at most 4",
        ),
    ],
)
def test_what_can_not_be_is_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_network_for_one_size_only_is_told(digits: DataSet) -> None:
    with pytest.raises(ValueError, match="resolutions has 4, and the network takes no images of 4 x 4 pixels"):
        check_fits(replace(SMALL, model=OwnNetwork(flat)), digits)
    check_fits(SMALL, digits)


def test_on_the_command_line() -> None:
    _, _, command = read_train(["digits-rate", "--resolutions", "4:0.3", "6:0.3"], "spikerate train")
    assert isinstance(command, Train) and command.run.resolutions == (Resolution(4, 0.3), Resolution(6, 0.3))
    with pytest.raises(ValueError, match=r"give SIDE:SHARE, as 16:0\.3"):
        read_train(["digits-rate", "--resolutions", "4"], "spikerate train")
