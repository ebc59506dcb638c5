"""Dspike and its temperature: the function, the search for the best of it, and its place in a run."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import (
    BPTT,
    LIF,
    AdaptiveDspike,
    Branched,
    Dspike,
    RateBP,
    Search,
    SelfDistillation,
    adapt,
)
from spikerate.data import Data, DataSet, load
from spikerate.gradients.finite_difference import Elements, cosine, derivatives, weights
from spikerate.gradients.temperature import temperatures
from spikerate.runs.config import Model, Neuron, Run
from spikerate.runs.presets import PRESETS, preset
from spikerate.runs.record import RunFolder
from spikerate.runs.train import Trainer
from spikerate.system.codec import decode, encode
from spikerate.system.interrupt import Interrupt, Interrupted
from support.networks import small_network
from support.runs import Silent, assert_same

Spikerate = Callable[..., CompletedProcess[str]]
TEMPERATURES = [10.0**k for k in range(-3, 4)] + [0.5, 3.0, 30.0]


# the function -----------------------------------------------------------------------------------------------------------


def exact(x: float, b: float, width: float) -> tuple[float, float]:
    """Function and derivative to 50 digits."""
    with mpmath.workdps(50):
        z, b, width = mpmath.mpf(x) / mpmath.mpf(width), mpmath.mpf(b), mpmath.mpf(width)
        if abs(z) > 0.5:
            return float(z > 0), 0.0
        scale = 2 * mpmath.tanh(b / 2)
        return float(mpmath.tanh(b * z) / scale + mpmath.mpf(1) / 2), float(b / scale / width * mpmath.sech(b * z) ** 2)


@pytest.mark.parametrize("width", [1.0, 2.0, 0.6])
@pytest.mark.parametrize("b", TEMPERATURES)
def test_function_and_derivative_to_the_last_digits(b: float, width: float) -> None:
    for dtype in (torch.float64, torch.float32):
        x = (torch.linspace(-0.69, 0.69, 57) * width).to(dtype)
        expected = torch.tensor([exact(float(v), b, width) for v in x.double()], dtype=torch.float64)
        surrogate = Dspike(b, width)
        tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
        # The argument of the exponential is rounded, so that its relative error is as large as it is itself.
        loose = 8 * eps * (1 + 2 * b * x.double().abs() / width)
        adaptive = AdaptiveDspike(Dspike(1.0, width)).to(dtype)
        adaptive.temperature.fill_(b)
        for slope in (surrogate.slope(x), adaptive.slope(x)):
            assert slope.dtype == dtype
            assert ((slope.double() - expected[:, 1]).abs() <= loose * expected[:, 1] + tiny).all()
        assert torch.allclose(surrogate.primitive(x).double(), expected[:, 0], rtol=0, atol=4 * eps)


def test_limits_are_the_identity_and_the_step() -> None:
    x = torch.arange(-5, 6, dtype=torch.float64) / 10
    torch.testing.assert_close(Dspike(1e-3).primitive(x), x + 0.5, rtol=0, atol=1e-6)
    torch.testing.assert_close(Dspike(1e-3).slope(x), torch.ones_like(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(Dspike(1e3).primitive(x), (x.sign() + 1) / 2, rtol=0, atol=1e-6)
    assert Dspike(1e3).slope(x).tolist() == pytest.approx([0.0] * 5 + [500.0] + [0.0] * 5, abs=1e-9)
    for b in TEMPERATURES:  # a step of height one, whatever the temperature and the width
        fine = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
        assert float(torch.trapezoid(Dspike(b, 1.7).slope(fine), fine)) == pytest.approx(1, abs=1e-3)


def test_a_temperature_of_state_is_a_fixed_one_in_every_neuron() -> None:
    x = torch.randn(4, 50, dtype=torch.float64)
    for reset in ({}, {"detach_reset": False}, {"v_reset": 0.0}, {"v_reset": -0.2, "detach_reset": False}):
        results = []
        for surrogate in (Dspike(2.5, 2.0), adaptive := AdaptiveDspike(Dspike(1.0, 2.0)).double()):
            adaptive.temperature.fill_(2.5) if isinstance(surrogate, AdaptiveDspike) else None
            neuron, current = LIF(surrogate=surrogate, **reset), x.clone().requires_grad_()  # type: ignore[arg-type]
            spikes, _ = neuron.unroll(current, None)
            results.append([*torch.autograd.grad((spikes * x).sum(), current), *neuron.trace(x, None)[1]])
        for fixed, state in zip(*results, strict=True):
            torch.testing.assert_close(fixed, state, rtol=1e-12, atol=0)


def test_another_temperature_compiles_nothing_anew() -> None:
    surrogate = AdaptiveDspike(Dspike(1.0))
    compiled = torch.compile(lambda x: surrogate.slope(x), fullgraph=True, backend="eager")
    x = torch.linspace(-1, 1, 5)
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        surrogate.temperature.fill_(3.0)
        assert torch.allclose(compiled(x), Dspike(3.0).slope(x))


# the search -------------------------------------------------------------------------------------------------------------


def one_neuron(q: float, temperature: float) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A neuron of two weights, the gradient of which is known.

    One sample of ten of the first weight sits at the threshold. Of those of the second a share q sits near it and fires
    when the weight is moved by 0.1, the others lie far above it and do not.
    """
    network = nn.Sequential(nn.Linear(2, 1, bias=False), LIF(surrogate=Dspike(temperature)), nn.Linear(1, 2)).double()
    near, far, n = 1.05, 1.4, 20
    amplitudes = [near] * round(q * n) + [far] * (n - round(q * n))
    x = torch.tensor([[1.0, 0.0]] * n + [[0.0, a] for a in amplitudes], dtype=torch.float64)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[2].weight.copy_(torch.tensor([[1e-4], [-1e-4]]))  # so small that the loss is linear in the spikes
        network[2].bias.zero_()
    return adapt(network), x.unsqueeze(0), torch.zeros(2 * n, dtype=torch.int64)


def known_similarity(b: float, q: float) -> float:
    """By hand: between (1, q) and the means over samples of amplitude times sech^2."""
    by_slope = q * 1.05 / math.cosh(0.05 * b) ** 2 + (1 - q) * 1.4 / math.cosh(0.4 * b) ** 2
    return (1 + q * by_slope) / math.hypot(1, q) / math.hypot(1, by_slope)


@pytest.mark.parametrize("q", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("rule", [BPTT(), RateBP()], ids=str)
def test_the_search_finds_the_temperature_that_is_known_to_be_best(q: float, rule: Any) -> None:
    network, x, labels = one_neuron(q, 1.0)
    best = max((known_similarity(k / 100, q), k / 100) for k in range(1, 3000))[1]
    assert 2 < best < 10
    search = Search(step=0.2)
    trail = [search(network, rule, x, labels) for _ in range(60)]
    assert trail[0]["similarity/held"] == pytest.approx(known_similarity(1.0, q), abs=1e-6)
    assert trail[0]["similarity/down"] == pytest.approx(known_similarity(0.8, q), abs=1e-6)
    assert trail[0]["temperature"] == pytest.approx(1.2)
    assert trail[-1]["temperature"] == trail[-2]["temperature"] == pytest.approx(best, abs=0.2)
    assert trail[-1]["similarity"] == pytest.approx(1, abs=1e-3)
    assert temperatures(network) == {"1": trail[-1]["temperature"]}


def deep() -> tuple[nn.Module, Tensor, Tensor]:
    network = adapt(small_network(lambda: LIF(surrogate=Dspike(2.0, 2.0)))).double()
    x = torch.rand(6, 2, 6, 6, dtype=torch.float64)
    return network, x.expand(3, *x.shape), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("rule", [BPTT(), RateBP(), RateBP(chunk=1)], ids=str)
def test_the_best_of_three_is_kept_and_nothing_else_changes(rule: Any) -> None:
    network, x, labels = deep()
    before = {k: v.clone() for k, v in network.state_dict().items() if "temperature" not in k}
    stream = torch.get_rng_state()
    row = Search()(network, rule, x, labels)
    assert set(row) == {"temperature", "similarity", *(f"similarity/{k}" for k in ("held", "up", "down"))}
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    weight = weights(network)["0"]
    measured = derivatives(network, weight, x, lambda r: F.cross_entropy(r, labels), Elements(weight.shape))
    for b, name in ((2.0, "held"), (2.2, "up"), (1.8, "down")):
        for module in network.modules():
            if isinstance(module, AdaptiveDspike):
                module.temperature.fill_(b)
        (gradient,) = torch.autograd.grad(F.cross_entropy(rule(network, x).rate, labels), weight)
        assert row[f"similarity/{name}"] == pytest.approx(cosine(gradient, measured), abs=1e-6)
        if row["similarity"] == row[f"similarity/{name}"]:
            assert row["temperature"] == pytest.approx(b)
    assert row["similarity"] == max(v for k, v in row.items() if k.startswith("similarity/"))


def test_one_for_each_layer_is_never_worse() -> None:
    network, x, labels = deep()
    row = Search(per="layer")(network, BPTT(), x, labels)
    assert set(row) == {"temperature", "similarity", "similarity/held"}
    assert row["similarity"] >= row["similarity/held"]
    assert set(temperatures(network)) == {"2", "5"}
    assert set(temperatures(network).values()) <= {1.8, 2.0, 2.2}
    assert Search(step=0)(network, BPTT(), x, labels)["similarity"] == pytest.approx(row["similarity"], abs=1e-9)


def test_what_can_not_be_told_apart_stays() -> None:
    network, x, labels = deep()
    silent = -100 * torch.ones_like(x)
    assert Search()(network.eval(), BPTT(), silent * 0, labels) == {
        "temperature": 2.0,
        "similarity": 0.0,
        "similarity/held": 0.0,
        "similarity/up": 0.0,
        "similarity/down": 0.0,
    }
    network, x, labels = one_neuron(0.5, 0.1)
    assert "similarity/down" not in Search()(network, BPTT(), x, labels)  # below 0 there is none
    row = Search(step=0.0)(network, BPTT(), x, labels)
    assert set(row) == {"temperature", "similarity", "similarity/held"}


def test_random_directions_look_the_same_way() -> None:
    network, x, labels = deep()
    few = [Search(step=0, directions=36)(network, BPTT(), x, labels, seed)["similarity"] for seed in (1, 1, 2)]
    assert few[0] == few[1] != few[2]


def test_what_a_search_refuses() -> None:
    network, x, labels = deep()
    with pytest.raises(ValueError, match=r"search\.layer is 'layer9': give one of 0, 3, 8"):
        Search(layer="layer9")(network, BPTT(), x, labels)
    with pytest.raises(ValueError, match=r"no temperatures to search for: call adapt\(network\) first"):
        Search()(small_network().double(), BPTT(), x, labels)
    with pytest.raises(ValueError, match="no neurons with a Dspike"):
        adapt(small_network())
    fields: list[tuple[dict[str, Any], str]] = [
        ({"step": -0.1}, "search.step is -0.1"),
        ({"step": math.nan}, "search.step is nan"),
        ({"per": "neuron"}, "search.per is 'neuron': give network or layer"),
        ({"epsilon": 0.0}, "search.epsilon is 0.0"),
        ({"samples": 1}, "search.samples is 1"),
        ({"directions": 0}, "search.directions is 0"),
    ]
    for field, words in fields:
        with pytest.raises(ValueError, match=words):
            Search(**field)
    with pytest.raises(ValueError, match="search is for the temperature of Dspike"):
        Run(search=Search())
    with pytest.raises(ValueError, match=r"search\.samples is 200: give at most the batch size, 128"):
        Run(neuron=Neuron(surrogate=Dspike()), search=Search(samples=200))
    with pytest.raises(ValueError, match=r"Dspike.width is 0.0"):
        Dspike(1.0, 0.0)


# in a run ---------------------------------------------------------------------------------------------------------------

TINY = replace(
    preset("digits-dspike").run,
    model=Model(width=2),
    epochs=2,
    batch=300,
    data=Data("digits", subset=900),
    search=Search(samples=8),
)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(TINY.data, 1)


class StopAt(Silent):
    """Asks for the end after so many steps."""

    def __init__(self, at: int, stop: Interrupt) -> None:
        super().__init__()
        self.at, self.stop_at = at, stop

    def step(self, step: int, terms: dict[str, Tensor]) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("per", ["network", "layer"])
def test_a_run_logs_its_temperature_and_resumes_to_the_same_bits(per: Any, digits: DataSet, tmp_path: Path) -> None:
    run = replace(TINY, search=replace(TINY.search, per=per))
    unbroken = RunFolder.create(tmp_path / "unbroken", run, {})
    state = Trainer(run, digits, unbroken, Silent()).train()
    for row in state.rows:
        assert {"temperature", "similarity", "similarity/held", "search_seconds"} <= set(row)
    assert len(temperatures(state.network)) == 17
    assert state.rows[-1]["temperature"] == pytest.approx(sum(temperatures(state.network).values()) / 17, abs=1e-6)
    assert state.rows[0]["temperature"] != 1.0 or state.rows[1]["temperature"] != 1.0
    broken = RunFolder.create(tmp_path / "broken", run, {})
    for at in range(1, 7):
        with Interrupt() as stop:
            try:
                state = Trainer(run, digits, broken, StopAt(at, stop), stop=stop).train()
            except Interrupted:
                continue
    assert state.epoch == 2
    assert_same(tmp_path / "unbroken", tmp_path / "broken")


def test_the_search_of_a_run_with_branches_is_that_of_its_body(digits: DataSet, tmp_path: Path) -> None:
    run = replace(TINY, rule=RateBP(), loss=SelfDistillation(), epochs=1)
    state = Trainer(run, digits, RunFolder.create(tmp_path / "run", run, {}), Silent()).train()
    assert isinstance(state.network, Branched)
    assert {"kl", "temperature", "similarity/up"} <= set(state.rows[0])


def test_method_and_surrogate_are_a_field_each() -> None:
    for name in ("digits", "cifar10-small"):
        run = PRESETS[f"{name}-dspike"].run
        assert PRESETS[f"{name}-dspike-rate"].run == replace(run, rule=RateBP())
        assert PRESETS[f"{name}-dspike-esd"].run == replace(run, rule=RateBP(), loss=PRESETS[f"{name}-esd"].run.loss)
    assert decode(Run, json.loads(json.dumps(encode(run)))) == run
    fixed = Run(neuron=Neuron(surrogate=Dspike(3.0))).build(10, (3, 32, 32))
    assert not temperatures(fixed)


def test_the_schedule_of_the_paper() -> None:
    """300 epochs at T = 6, then 50 at each of the steps below (Li et al., NeurIPS 2021)."""
    for name in ("cifar10", "cifar100"):
        run = PRESETS[f"dspike-{name}"].run
        rounds = [(r.T, r.epochs, r.optim.lr) for r in run.rounds]
        assert rounds[1:] == [(6, 300, 0.01), *((T, 50, 0.004) for T in (5, 4, 3, 2))]
        assert not run.rounds[0].spiking and run.rounds[0].search is None
        assert (run.optim.weight_decay, run.optim.momentum) == (1e-4, 0.9)
        assert run.data.augment.autoaugment == "cifar10" and run.data.augment.cutout
        assert run.neuron.surrogate == Dspike(1.0, width=2.0)  # type: ignore[union-attr]
        assert (run.search.step, run.search.epsilon, run.search.layer) == (0.2, 0.1, None)  # type: ignore[union-attr]
    assert {PRESETS[f"dspike-imagenet-{n}"].run.model.name for n in ("vgg16", "resnet34")} == {"vgg16", "resnet34"}
    assert PRESETS["dspike-cifar10-dvs"].run.T == 10


def test_on_the_command_line(spikerate: Spikerate, tmp_path: Path) -> None:
    tiny = ["--width", "2", "--subset", "40", "--batch", "20", "--search.samples", "4", "--search.directions", "5"]
    done = spikerate("train", "digits-dspike", *tiny, "--epochs", "2", "--before", "ann:1:0.1", "3:1:0.01", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "temperature 1." in done.stdout or "temperature 0." in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (tmp_path / "run" / "round2-T3" / "metrics.jsonl").read_text().splitlines()]
    assert abs(rows[0]["temperature"] - before[-1]["temperature"]) <= 0.2 + 1e-6  # handed on
    for words, sentence in (
        (["--search.step", "-1"], "search.step is -1"),
        (["--search.layer", "nothing"], "search.layer is 'nothing': give one of stem.0"),
        (["--search.directions", "100"], "search.directions is 100, but the weight of stem.0 has 18 elements"),
    ):
        done = spikerate("train", "digits-dspike", *tiny, *words, "--out", "bad")
        assert (done.returncode, sentence in done.stderr, len(done.stderr.splitlines())) == (2, True, 1)
