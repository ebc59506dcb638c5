"""How well gradients agree: figures with known answers, what is left as it was, the picture and the command."""

from __future__ import annotations

import json
import subprocess
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate import BPTT, RateBP
from spikerate.cli.plots import draw_gradients
from spikerate.data.digits import digits
from spikerate.gradients.agreement import Agreement, Comparison, Fidelity
from spikerate.gradients.finite_difference import weights
from spikerate.runs.experiment import begin
from spikerate.runs.presets import PRESETS
from support.networks import golden_branched, small_network

Spikerate = Callable[..., subprocess.CompletedProcess[str]]
LABELS = torch.tensor([0, 1, 2, 0, 1])
SMALL = {"samples": 5, "directions": 4}


def images(T: int) -> Tensor:
    return torch.rand(T, 5, 2, 6, 6, dtype=torch.float64)


def close(found: Agreement, cosine: float, ratio: float, within: float = 1e-6) -> None:
    assert found.cosine == pytest.approx(cosine, abs=within)
    assert found.ratio == pytest.approx(ratio, abs=within)


def test_at_one_step_rate_based_backpropagation_is_exact() -> None:
    network = small_network().double()
    found = Comparison(**SMALL)(network, images(1), LABELS)
    assert [f.layer for f in found] == ["0", "3", "8"]
    assert [f.elements for f in found] == [72, 180, 15]
    for f in found:
        close(f.rate_bptt, 1, 1)
        assert astuple(f.rate_fdg) == pytest.approx(astuple(f.bptt_fdg))
        assert (f.directions, f.noise) == (4, 0.5)


def test_with_all_directions_the_naive_loop() -> None:
    network, x = small_network().double(), images(3)
    found = Comparison(directions=180)(network, x, LABELS)

    def loss(rule: BPTT | RateBP) -> Tensor:
        return F.cross_entropy(rule(network, x).rate, LABELS)

    @torch.no_grad()
    def difference(weight: Tensor, i: int) -> float:
        element = weight.data.view(-1)[i : i + 1]
        before, losses = element.clone(), []
        for moved in (before + 0.1, before - 0.1):
            element.copy_(moved)
            losses.append(float(loss(BPTT())))
        element.copy_(before)
        return (losses[0] - losses[1]) / 0.2

    for f in found:
        assert f.directions == f.elements
        weight = weights(network)[f.layer]
        bptt, rate = (torch.autograd.grad(loss(rule), weight)[0].flatten() for rule in (BPTT(), RateBP()))
        fdg = torch.tensor([difference(weight, i) for i in range(f.elements)], dtype=torch.float64)
        for agreement, a, b in ((f.rate_bptt, rate, bptt), (f.bptt_fdg, bptt, fdg), (f.rate_fdg, rate, fdg)):
            close(agreement, float(F.cosine_similarity(a, b, dim=0)), float(a.norm() / b.norm()))
    assert found[0].rate_bptt.cosine < 0.9999, "at T = 3 it is an approximation"


def test_behind_the_last_neuron_all_agree() -> None:
    for directions in (3, 15):
        last = Comparison(directions=directions, epsilon=1e-3)(small_network().double(), images(3), LABELS)[-1]
        for agreement in last.pairs.values():
            close(agreement, 1, 1, within=1e-4)


def test_nothing_is_left_behind() -> None:
    network = nn.Sequential(small_network(), nn.Dropout(0.5), nn.Linear(3, 3)).double().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = images(2)
    stream = torch.get_rng_state()
    with torch.no_grad():
        found = Comparison(**SMALL)(network, x, LABELS)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(m.training for m in network.modules())
    assert Comparison(**SMALL)(network.train(), x, LABELS) == found
    assert network.training
    other = Comparison(**SMALL, seed=1)(network, x, LABELS)
    assert [f.rate_bptt for f in other] == [f.rate_bptt for f in found]
    assert [f.bptt_fdg for f in other] != [f.bptt_fdg for f in found]


def test_a_branched_network_is_measured_on_its_body() -> None:
    network, x = golden_branched(), torch.rand(2, 5, 3, 8, 8)
    compare = Comparison(samples=5, directions=1)
    assert compare(network, x, LABELS) == compare(network.body, x, LABELS)


def test_under_autocast_every_layer_has_a_gradient() -> None:
    for f in Comparison(**SMALL)(small_network(), images(1).float(), LABELS, precision="bf16"):
        assert f.rate_bptt.cosine > 0.9
        assert f.rate_bptt.ratio == pytest.approx(1, abs=0.2)


def test_a_gradient_of_zero_has_no_direction() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert Agreement.between(zero, one) == Agreement(0.0, 0.0)
    assert Agreement.between(one, zero) == Agreement(0.0, None)


def test_numbers_that_are_not_finite_are_refused() -> None:
    network = small_network()
    assert isinstance(network[-1], nn.Linear)
    nn.init.constant_(network[-1].weight, float("nan"))
    with pytest.raises(ValueError, match="a gradient of layer 0 is not finite"):
        Comparison(**SMALL)(network, images(2).float(), LABELS)
    assert network.training


def some(n: int, ratio: float | None = 0.5) -> list[Fidelity]:
    agreement = Agreement(0.7, ratio)
    return [Fidelity(f"stages.stage{k}.conv<1>", 100 + k, 64, agreement, agreement, agreement) for k in range(n)]


def test_the_picture_holds_the_layers_and_is_the_same_each_time(tmp_path: Path) -> None:
    one, other = tmp_path / "one.svg", tmp_path / "other.svg"
    draw_gradients(some(21), one)
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.fonttype": "path"}):
        draw_gradients(some(21), other)
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert one.read_bytes() == other.read_bytes()
    texts = [text for element in ET.parse(one).iter() if (text := element.text)]
    for name in (*(f.layer for f in some(21)), *some(1)[0].pairs, "cosine similarity", "norm ratio"):
        assert texts.count(name) == 1


@pytest.mark.parametrize("ratio", [None, 0.0, 1e-12, 1e12])
def test_odd_ratios_are_drawn_in_silence(tmp_path: Path, ratio: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_gradients(some(1, ratio), tmp_path / "x.svg")
        draw_gradients([*some(1, ratio), *some(2)], tmp_path / "x.svg")
    ET.parse(tmp_path / "x.svg")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        draw_gradients(some(2), tmp_path / "gone" / "x.svg")
    assert list(tmp_path.iterdir()) == []


def test_the_command_on_a_fresh_network(spikerate: Spikerate, tmp_path: Path) -> None:
    options = ["digits-rate", "--neuron", "ilif", "--T", "1", "--samples", "4", "--directions", "1"]
    done = spikerate("gradient", *options)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "digits-rate-gradient"
    record = json.loads((folder / "gradient.json").read_text())
    assert record["command"] == "spikerate gradient " + " ".join(options)
    assert [record[name] for name in ("weights", "T", "samples", "directions", "epsilon")] == ["fresh", 1, 4, 1, 0.1]
    assert (record["run"]["T"], record["run"]["neuron"]["type"]) == (1, "IntegerNeuron")
    assert record["environment"]["packages"]["matplotlib"]
    assert len(record["layers"]) == 21
    picture = (folder / "gradient.svg").read_text()
    ET.fromstring(picture)
    for layer in record["layers"]:
        assert layer["rate_bptt"]["cosine"] == pytest.approx(1, abs=1e-4)
        assert layer["layer"] in picture
        assert layer["layer"] in done.stdout


def test_the_command_on_a_trained_network(spikerate: Spikerate, tmp_path: Path) -> None:
    train = ["--epochs", "1", "--width", "2", "--batch", "400", "--T", "2", "--out", "run"]
    assert spikerate("train", "digits-rate", *train).returncode == 0
    small = ["--samples", "4", "--directions", "1"]
    layers = []
    for k, name in enumerate(("best", "last")):
        done = spikerate("gradient", "run", "--weights", name, *small)
        assert done.returncode == 0, done.stderr
        assert f"{name} weights" in done.stdout
        record = json.loads((tmp_path / "run" / ("gradient" + k * "-2") / "gradient.json").read_text())
        assert (record["weights"], record["T"], record["layers"][0]["layer"]) == (name, 2, "stem.0")
        layers.append(record["layers"])
    assert layers[0] == layers[1], "after one epoch, these are the same weights"
    refused = spikerate("gradient", "run", "--neuron", "ilif", *small)
    assert refused.returncode == 2 and "--neuron ilif: a run has its own parts" in refused.stderr
    fresh = spikerate("gradient", "digits-rate", *small, "--out", "other")
    assert fresh.returncode == 0, fresh.stderr
    assert json.loads((tmp_path / "other" / "gradient.json").read_text())["layers"] != layers[0]


def test_runs_that_can_not_be_measured(spikerate: Spikerate, tmp_path: Path) -> None:
    runs = {name: PRESETS[name].run for name in ("digits-ann", "digits-rate")}
    for name, run in runs.items():
        begin(tmp_path / name, run, digits(), {})
    begin(tmp_path / "other", runs["digits-rate"], replace(digits(), checksums={"digits.npz": "0"}), {})
    before = sorted(tmp_path.rglob("*"))
    for name, words in (
        ("digits-ann", "digits-ann is an ANN, which has no spikes"),
        ("digits-rate", "best.safetensors does not exist"),
        ("other", "its checksums differ"),
    ):
        done = spikerate("gradient", name)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


BAD: list[tuple[list[str], str]] = [
    (["digits-rate", "--samples", "1"], "samples is 1: batch norm needs at least two"),
    (["digits-rate", "--samples", "1258"], "samples is 1258, but there are 1257 to train on"),
    (["digits-rate", "--directions", "0"], "directions is 0: give a number >= 1"),
    (["digits-rate", "--epsilon", "0"], "epsilon is 0.0: give a positive number"),
    (["digits-rate", "--epsilon", "nan"], "epsilon is nan: give a positive number"),
    (["digits-rate", "--seed", "-1"], "seed is -1"),
    (["digits-rate", "--T", "0"], "T is 0"),
    (["digits-rate", "--device", "cuda:77"], "device is 'cuda:77'"),
    (["digits-rate", "--out", "occupied"], "is not empty: choose another"),
    (["digit-rate"], "digit-rate is no folder, and there is no preset 'digit-rate': did you mean digits-rate"),
    (["occupied"], "occupied contains no run"),
    (["digits-ann"], "digits-ann is an ANN"),
    (["cifar10-rate"], "--data PATH"),
    ([], "required"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence(spikerate: Spikerate, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    done = spikerate("gradient", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("spikerate: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
