"""The checker: what it says of sound networks is true, and faults made on purpose are found by name."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikerate import (
    BPTT,
    LIF,
    PLIF,
    Branched,
    Learnable,
    ParametricLIF,
    RateBP,
    Readout,
    Recurrent,
    StepNeuron,
    Triangular,
    check,
    deepconv_branches,
    macs,
    operation,
    resnet18,
)
from spikerate.measure.meter import Around
from spikerate.models import NETWORKS
from support import ROOT
from support.commands import TINY, refused, tell
from support.networks import gradients, small_network

Spikerate = Callable[..., subprocess.CompletedProcess[str]]


def images(T: int = 4, B: int = 3, shape: tuple[int, ...] = (2, 6, 6), dtype: Any = None) -> Tensor:
    return (2 * torch.randn(1, B, *shape, dtype=dtype)).expand(T, B, *shape)


class Does(nn.Module):
    """A module of a user's own."""

    def __init__(self, f: Callable[[Any], Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        return self.f(x)


def with_layer(layer: nn.Module) -> nn.Module:
    """A network with a layer of a user's own between two layers of neurons."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.BatchNorm1d(8), LIF(), layer, LIF(threshold=0.1), nn.Linear(8, 3)
    )


def test_each_operation_with_its_verb_shape_parameters_and_operations() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x, state = images(), torch.get_rng_state()
    found = check(network.eval(), x)
    assert [(row.layer, row.operation, row.verb) for row in found.rows] == [
        ("0", "conv2d", "affine"),
        ("1", "batch_norm", "normalize"),
        ("2", "LIF", "fire"),
        ("3", "conv2d", "affine"),
        ("4", "batch_norm", "normalize"),
        ("5", "LIF", "fire"),
        ("6", "avg_pool2d", "affine"),
        ("7", "flatten", "affine"),
        ("8", "linear", "affine"),
    ]
    assert [row.shape for row in found.rows][2:] == [(4, 6, 6), (5, 3, 3), (5, 3, 3), (5, 3, 3), (5, 1, 1), (5,), (3,)]
    assert [row.parameters for row in found.rows] == [72, 8, 0, 180, 10, 0, 0, 0, 18]
    assert [row.macs for row in found.rows] == [72 * 36, 0, 0, 180 * 9, 0, 0, 0, 0, 15]
    assert [row.exact for row in found.rows] == [True, True, True, True, False, False, True, True, True]
    assert [row.batch for row in found.rows] == [row.operation == "batch_norm" for row in found.rows]
    assert found.fine and not found.exact and found.parameters == sum(p.numel() for p in network.parameters())
    shown = str(found).splitlines()
    assert shown[0].split() == ["layer", "operation", "verb", "RateBP", "batch", "output", "parameters", "MACs", "fires"]
    assert "depends on batch-mates in training, and does not in evaluation" in shown[-1] and "ready to train" in shown[-1]
    assert not network.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_library_are_fine(name: str) -> None:
    torch.manual_seed(1)
    builder = NETWORKS[name]
    body = builder.make(10, 3 * 32 * 32 if builder.flat else 3, 4, LIF, *([32] if builder.sided else []))
    found = check(body, images(2, 2, (3, 32, 32)))
    if builder.recurrent:
        assert any("Recurrent" in fault for fault in found.faults)
        return
    assert found.fine, found.faults
    assert sum(row.macs for row in found.rows) == sum(macs(body, (3, 32, 32)).values())
    assert sum(row.parameters for row in found.rows) == found.parameters
    assert not any("<" in row.operation for row in found.rows)


def test_branches_are_part_of_the_step_and_not_of_the_table() -> None:
    body = resnet18(width=2)
    network = Branched(body, deepconv_branches(body, (3, 32, 32), 10))
    found = check(network, images(2, 2, (3, 32, 32)))
    assert found.fine, found.faults
    assert sum(row.parameters for row in found.rows) == sum(p.numel() for p in body.parameters()) < found.parameters


EXACT: dict[str, Callable[[], nn.Module]] = {
    "neurons at constant input": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 6), LIF(), nn.Linear(6, 3)),
    "batch norm and max pool at constant input": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), LIF(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)
    ),
    "hard reset": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 6), LIF(v_reset=0.0), nn.Linear(6, 3)),
}
APPROXIMATE: dict[str, Callable[[], nn.Module]] = {
    "two layers of neurons": small_network,
    "max pool of spikes": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), LIF(decay=1.0, threshold=0.7), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ),
    "batch norm of spikes": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 6), LIF(decay=1.0, threshold=0.7), nn.BatchNorm1d(6), nn.Linear(6, 3)
    ),
}


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("name", [*EXACT, *APPROXIMATE])
def test_the_gradient_is_bptts_where_all_is_exact_and_only_there(name: str, T: int) -> None:
    torch.manual_seed(2)
    network = (EXACT | APPROXIMATE)[name]().double()
    x = images(T, 6, dtype=torch.float64)
    found = check(network, x)
    assert found.fine, found.faults
    assert found.exact == (name in EXACT or T == 1)
    rate, bptt = (
        gradients(network, F.cross_entropy(rule(network, x).rate, torch.arange(6) % 3)) for rule in (RateBP(), BPTT())
    )
    same = all(torch.allclose(rate[key], bptt[key], rtol=1e-9, atol=1e-12) for key in rate)
    assert same == found.exact


class Leaky(LIF):
    """The fault of a published record: time and batch are one axis, along which the membrane goes on."""

    elementwise = False

    def spikes(self, inputs: Tensor) -> Tensor:
        return super().spikes(inputs.flatten(0, 1)[:, None]).view_as(inputs)


class Neighbour(StepNeuron):
    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        v = current if state is None else current + state.roll(1, 0)
        s = (v > 1).to(v.dtype)
        return s + (torch.sigmoid(v) - torch.sigmoid(v).detach()), v * (1 - s)


class Foreseeing(LIF):
    elementwise = False

    def spikes(self, inputs: Tensor) -> Tensor:
        return super().spikes(inputs.flip(0)).flip(0)


@operation("affine")
def as_one_axis(x: Tensor) -> Tensor:
    """The reshape of a record: rows of [T x B, ...] are taken for those of [B, T, ...]."""
    y = x.view(-1, 4, *x.shape[1:])
    return (y + y.mean(1, keepdim=True)).reshape(x.shape)


@operation("affine")
def centred(x: Tensor) -> Tensor:
    return x - x.unflatten(0, (-1, 3)).mean(1, keepdim=True).expand(-1, 3, *x.shape[1:]).flatten(0, 1)


@operation("affine")
def smoothed(x: Tensor) -> Tensor:
    steps = x.unflatten(0, (-1, 3))
    return (steps + steps.mean(0)).flatten(0, 1)


@operation("affine")
def squared(x: Tensor) -> Tensor:
    return x**2


@operation("nonlinear")
def fine(x: Tensor) -> Tensor:
    return x**2


def through_steps(x: Any) -> Any:
    """Around the signals: the steps as a tensor, of which a signal is made again."""
    inner = x.inner if isinstance(x, Around) else x
    return replace(inner, train=inner.train + inner.train.mean(1, keepdim=True))


FAULTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "leaky": (lambda: with_layer(Leaky()), r"4 \(Leaky\): membranes leak between samples"),
    "neighbour": (lambda: with_layer(Neighbour()), r"4 \(Neighbour\): membranes leak between samples"),
    "foreseeing": (lambda: with_layer(Foreseeing()), r"4 \(Foreseeing\): spikes depend on currents of later steps"),
    "one axis": (lambda: with_layer(Does(as_one_axis)), r"4 \(as_one_axis\) mixes time steps into the batch"),
    "centred": (lambda: with_layer(Does(centred)), r"4 \(centred\) mixes the samples of a batch"),
    "smoothed": (lambda: with_layer(Does(smoothed)), r"4 \(smoothed\) mixes time steps, which no rule"),
    "not affine": (lambda: with_layer(Does(squared)), r"4 \(squared\) is declared affine and does not commute"),
    "reshape": (lambda: with_layer(Does(lambda x: x.view(-1, 3, 8))), r"4 \(Does\): reshaping .* mixes the samples of a"),
    "no rule": (lambda: with_layer(Does(torch.sin)), r"4 \(Does\): sin has no rule for a spiking signal"),
    "own error": (lambda: with_layer(Does(lambda x: x.shape[7])), r"4 \(Does\): IndexError: tuple index out of range"),
    "untracked": (
        lambda: with_layer(nn.BatchNorm1d(8, track_running_stats=False)),
        r"^4: batch norm uses the statistics of the batch in evaluation too",
    ),
    "around": (lambda: with_layer(Does(through_steps)), r"the output for a sample depends on the other samples"),
    "no neurons": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), r"^it has no neurons"),
    "dead": (
        lambda: with_layer(LIF(threshold=100.0, surrogate=Triangular())),
        r"^4 is silent: .* no layer before it gets a gradient",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_name(name: str) -> None:
    torch.manual_seed(0)
    make, words = FAULTS[name]
    found = check(make(), images())
    assert re.search(words, "\n".join(found.faults)), found.faults
    assert not found.fine and found.summary.startswith("not ready to train"), found
    if name in ("no rule", "reshape", "own error"):
        assert [row.layer for row in found.rows] == ["0", "1", "2", "3"], "the table goes up to it"
    assert len(found.faults) <= 2, found.faults
    assert all("\n" not in line for line in found.lines)


def test_own_operations_that_are_sound_give_no_alarm() -> None:
    torch.manual_seed(0)
    found = check(with_layer(Does(fine)), images())
    assert found.fine, found.faults
    assert {row.operation for row in found.rows} >= {"fine"}
    noisy = operation("affine")(lambda x: x + 0.1 * torch.randn_like(x))
    assert check(with_layer(Does(noisy)), images()).fine


def test_a_silent_layer_that_can_learn_is_a_note() -> None:
    torch.manual_seed(0)
    found = check(with_layer(LIF(threshold=3.0)), images())
    assert found.fine and any("4 is silent" in note for note in found.notes), found
    loud = check(with_layer(nn.Sequential(nn.ConstantPad1d(0, 0.0), LIF())), images())
    assert loud.fine
    always = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), LIF(), nn.Linear(4, 4), LIF(threshold=0.1), nn.Linear(4, 3))
    with torch.no_grad():
        always[3].bias.fill_(50.0)  # type: ignore[union-attr,operator]
    assert any("4 fires at every step" in note for note in check(always, images()).notes)


class Forgotten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = small_network(), nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        return self.body(x)


def test_parameters_that_the_output_does_not_depend_on_are_named() -> None:
    found = check(Forgotten(), images())
    assert found.faults == ("spare.weight, spare.bias: no gradient under RateBP, since the output does not depend on it",)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, set[str]]] = {
    "recurrent": (
        lambda: Recurrent(nn.Linear(8, 8), LIF(threshold=0.3)),
        r"^it needs BPTT, SLTT or OTTT, since RateBP refuses 4 \(Recurrent\): Recurrent has no gradient through",
        {"RateBP"},
    ),
    "recurrent that learns": (
        lambda: Recurrent(nn.Linear(8, 8), PLIF(threshold=0.3)),
        r"^it needs BPTT, since RateBP refuses 4 \(Recurrent\): .*; SLTT and OTTT refuse 4 \(Recurrent\): .* PLIF",
        {"RateBP", "SLTT", "OTTT"},
    ),
    "readout": (
        lambda: Readout(output="last"),
        r"^it needs BPTT, since RateBP, SLTT and OTTT refuse 4 \(Readout\): Readout.output is 'last'",
        {"RateBP", "SLTT", "OTTT"},
    ),
    "learned reset": (
        lambda: ParametricLIF(0.9, 0.3, v_reset=Learnable(0.0)),
        r"^it needs BPTT or RateBP, since SLTT and OTTT refuse 4 \(ParametricLIF\): the v_reset of a ParametricLIF",
        {"SLTT", "OTTT"},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_rule_that_a_layer_refuses_is_a_property(name: str) -> None:
    torch.manual_seed(0)
    make, words, rules = REFUSED[name]
    network = with_layer(make())
    found = check(network, images())
    assert found.fine, found.faults
    assert found.refused.keys() == rules and re.search(words, found.notes[0]), found.notes
    by = found.notes[0].removeprefix("it needs ").partition(", since")[0]
    assert found.summary.startswith(f"ready to train by {by}: 7 operations"), found.summary
    # All parameters are in the table, with those that spikes come back through, and what they cost.
    assert sum(row.parameters for row in found.rows) == found.parameters
    assert found.rows[4].macs == (64 if "recurrent" in name else 0)
    taken = "RateBP" not in rules
    assert any(row.exact for row in found.rows) == taken == ("gradient under RateBP" in found.summary)
    assert ("approximate" in str(found)) == taken == any(line.startswith("affine:") for line in found.lines)


def test_the_rest_of_a_refused_network_is_examined() -> None:
    torch.manual_seed(0)
    recurrent = Recurrent(nn.Linear(8, 8), LIF(threshold=0.3))
    silent = check(with_layer(Recurrent(nn.Linear(8, 8), LIF(threshold=100.0, surrogate=Triangular()))), images())
    assert re.search("^4 is silent: .* no layer before it gets a gradient", silent.faults[0]), silent.faults
    leaky = check(with_layer(nn.Sequential(recurrent, Leaky())), images())
    assert "4.1 (Leaky): membranes leak between samples" in leaky.faults[0] and leaky.refused
    spare = Forgotten()
    spare.body = with_layer(recurrent)
    assert check(spare, images()).faults == (
        "spare.weight, spare.bias: no gradient under BPTT, since the output does not depend on it",
    )

    class Broken(LIF):
        def trace(self, inputs: Tensor, state: Any) -> Any:
            raise TypeError("a mistake in it")

    broken = check(with_layer(Broken()), images())
    assert broken.faults == ("4 (Broken): a mistake in it",) and not broken.refused


def test_recordings_single_samples_and_one_step() -> None:
    torch.manual_seed(0)
    moving = check(small_network(), torch.randn(3, 2, 2, 6, 6))
    assert moving.fine and [row.exact for row in moving.rows][:3] == [True, False, False]
    assert check(small_network(), images(3, 1)).fine
    assert check(small_network(), images(1, 2)).exact


def test_a_network_of_several_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = small_network(classes=4), nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            y = self.body(x)
            return {"steps": y, "ordinary": self.head(y.rate)}

    assert check(Two(), images()).fine


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the network is a function: give a torch\.nn\.Module"):
        check(lambda x: x, images())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the input is"):
        check(small_network(), torch.zeros(3, 3))


def test_too_little_memory_is_no_fault_of_the_network() -> None:
    def full(x: Any) -> Any:
        raise MemoryError

    def starved(x: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    for f in (full, starved):
        with pytest.raises((MemoryError, RuntimeError)):
            check(with_layer(Does(f)), images())


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a stranger's package in it."""
    shutil.copytree(ROOT / "tests" / "stranger", tmp_path / "stranger", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_on_the_command_line(spikerate: Spikerate, here: Path) -> None:
    done = spikerate("check", "stranger.networks:flat", "--shape", "1", "8", "8", "--neuron", "stranger.parts:Slowly")
    assert done.returncode == 0 and "ready to train" in done.stdout and "Slow " in done.stdout, done
    assert done.stdout.splitlines()[0].startswith(
        "stranger.networks:flat, fresh weights: a step of training, an image [1, 8, 8]"
    )
    wavy = spikerate("check", "stranger.networks:wavy", "--shape", "1", "8", "8")
    assert wavy.returncode == 1 and "FAULT: 1 (Wavy): sin has no rule" in wavy.stdout, wavy
    assert "flatten" in wavy.stdout and "linear" not in wavy.stdout.partition("\n\n")[0]
    assert list(here.iterdir()) == [here / "stranger"]
    for words, said in (
        (["stranger.networks:fla"], "did you mean flat?"),
        (["resnet81"], "did you mean resnet19 or resnet18"),
        (["digits-ann"], "digits-ann is an ANN, which has no spikes"),
        (["resnet18", "--rule", "rate"], "takes no --rule"),
        (["resnet18", "--T", "0"], "T is 0"),
        (["stranger.networks:none"], "makes a str"),
    ):
        wrong = spikerate("check", *words)
        assert wrong.returncode == 2 and said in wrong.stderr and wrong.stderr.count("\n") == 1, wrong


def test_a_run_is_checked_with_its_weights_and_a_preset_with_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tell("train", *TINY, "--out", "run")[0] == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    status, out, err = tell("check", "run", "--batch", "8", "--T", "2")
    assert status in (0, 1) and not err and "run, trained weights: a step of training, an image [1, 8, 8]" in out
    assert "branches" not in out, "which a trained network has no more"
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*")) == before
    assert "trained for 10 classes of samples [1, 8, 8]" in refused("check", "run", "--classes", "7")
    status, out, _ = tell("check", "digits-dvs-rate", "--batch", "2", "--T", "3", "--seed", "1")
    assert status == 0 and "a recording [2, " in out.splitlines()[0] and out.splitlines()[0].endswith("T = 3")
    Path("mine.py").write_text("from spikerate import resnet20\nnet = resnet20(width=2)\n")
    status, out, _ = tell("check", "mine:net", "--T", "1", "--batch", "2")
    assert status == 0 and out.startswith("mine:net, as it is") and "is exact at T = 1" in out
