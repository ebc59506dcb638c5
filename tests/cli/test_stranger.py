"""Parts of a user's own, from a package outside of the library: trained, resumed, evaluated, shown, exported, or refused."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stranger import networks, parts
from torch import Tensor, nn
from torch.nn import functional as F

import spikerate as library
from spikerate import (
    BPTT,
    LIF,
    OTTT,
    SLTT,
    CrossEntropy,
    RateBP,
    Rule,
    SelfDistillation,
    Sigmoid,
    StepNeuron,
    fused,
    operation,
)
from spikerate.data import Data, load
from spikerate.gradients.finite_difference import variant_rates
from spikerate.report.gather import gather
from spikerate.runs.config import LearningNeuron, Model, Neuron, OwnNetwork, Run
from spikerate.runs.estimate import training_flops
from spikerate.runs.experiment import begin, check_fits
from spikerate.runs.kinds import PARTS, take_own, with_kinds
from spikerate.runs.optim import SGD
from spikerate.runs.record import RunFolder
from spikerate.runs.train import Trainer
from spikerate.system.codec import Own, decode, encode
from spikerate.system.environment import fingerprint
from spikerate.system.files import read_tensors
from support import ROOT
from support.processes import Processes, wait_for

Command = Callable[..., subprocess.CompletedProcess[str]]

CODE = {
    "--network": "stranger.networks:Small",
    "--rule": "stranger.parts:louder",
    "--loss": "stranger.parts:Hinge",
    "--neuron": "stranger.parts:Slowly",
    "--surrogate": "stranger.parts:Gaussian",
    "--optim": "stranger.parts:NAdam",
    "--schedule": "stranger.parts:Root",
    "--reader": "stranger.parts:Bars",
}
OWN = [word for pair in CODE.items() for word in pair]
FIELDS = ["--model.network.width", "4", "--neuron.decay", "0.4", "--neuron.surrogate.width", "0.8", "--loss.margin", "0.9"]
SHORT = ["--data.validation", "16", "--data.test", "16", "--batch", "16", "--epochs", "40"]
RUN = Run(
    Data("own", validation=16, test=16, reader=parts.Bars()),
    OwnNetwork(networks.Small(4)),
    parts.Slowly(),
    parts.Louder(),
    parts.Hinge(),
    optim=parts.NAdam(schedule=parts.Root()),
    epochs=1,
    batch=16,
)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with the stranger's package in it."""
    shutil.copytree(ROOT / "tests" / "stranger", tmp_path / "stranger", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def trained(tmp_path: Path) -> RunFolder:
    data = load(RUN.data, RUN.T)
    folder = begin(tmp_path / "run", RUN, data, {})
    Trainer(RUN, data, folder).train()
    return folder


def test_a_strangers_parts_are_trained_stopped_and_resumed_to_the_same_bits(
    processes: Processes, spikerate: Command, here: Path
) -> None:
    train = ["train", "digits-bptt", *OWN, *FIELDS, *SHORT]
    whole = spikerate(*train, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    run = here / "stopped"
    stop = partial(processes.run, cwd=here, kill=signal.SIGTERM, when=lambda: wait_for(run / "metrics.jsonl"))
    stopped = stop(*train, "--out", "stopped")
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    refused = spikerate("train", "--resume", "stopped")
    assert (
        refused.returncode == 2
        and "never imported from a file: name it again, --reader stranger.parts:Bars" in refused.stderr
    )
    again = " ".join(stopped.stdout.split()).partition("continue by: spikerate ")[2]
    assert "--network stranger.networks:Small" in again
    resumed = spikerate(*shlex.split(again))
    assert resumed.returncode == 0, resumed.stderr
    for name in ("last", "best"):
        (one, facts), (other, _) = (read_tensors(here / of / f"{name}.safetensors") for of in ("whole", "stopped"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert facts["epoch"] > 0
    settings = json.loads((run / "run.json").read_text())["run"]
    assert settings["rule"] == {"type": "stranger.parts:Louder", "factor": 1.25}
    assert settings["model"]["network"] == {"type": "stranger.networks:Small", "width": 4}
    assert settings["neuron"]["surrogate"] == {"type": "stranger.parts:Gaussian", "width": 0.8}


def test_the_other_commands_take_the_code_again(spikerate: Command, here: Path, trained: RunFolder) -> None:
    measured = spikerate("eval", "run", "--weights", "last", *OWN)
    assert measured.returncode == 0 and "bars" in measured.stdout, measured.stderr
    nir = spikerate("export", "run", "net.nir", "--weights", "last", *OWN)
    assert nir.returncode == 2 and "(Slow) can't be exported, since NIR has no node for it" in nir.stderr
    plain = spikerate("export", "run", "net.safetensors", "--weights", "last", *OWN)
    assert plain.returncode == 0, plain.stderr
    asked = spikerate("predict", "run", "run/run.json", *OWN)
    assert asked.returncode == 2 and "read by stranger.parts:Bars" in asked.stderr
    with pytest.raises(ValueError, match=r"--network stranger\.networks:Small"):
        library.load(here / "net.safetensors")
    network = library.load(here / "net.safetensors", parts.Slowly(), networks.Small)
    x = torch.rand(3, 2, 1, 8, 8)
    assert torch.equal(BPTT()(network, x).rate, BPTT()(library.load(trained.path, RUN), x).rate)


def test_a_report_shows_path_and_fields_and_imports_nothing(spikerate: Command, tmp_path: Path, trained: RunFolder) -> None:
    done = spikerate("report", "run")  # in a folder without the package
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "stranger.parts:Louder" in page and "the user&#39;s own code" in page
    assert "Further terms of the loss" in page and "largest-logit" in page
    shown = gather([tmp_path / "run"]).groups[0].run
    assert shown.spiking and encode(shown) == encode(RUN)


def test_code_that_a_file_names_is_never_imported(spikerate: Command, here: Path, trained: RunFolder) -> None:
    file = trained.path / "run.json"
    record = json.loads(file.read_text().replace("stranger.parts:Louder", "stranger.trap:Trap"))
    file.write_text(json.dumps(record | {"fingerprint": fingerprint(record["run"])}))
    for words in (["eval", "run"], ["train", "--resume", "run"], ["export", "run", "a.pt2"], ["gradient", "run"]):
        done = spikerate(*words, *(word for pair in CODE.items() if pair[0] != "--rule" for word in pair))
        assert done.returncode == 2 and "--rule stranger.trap:Trap" in done.stderr
    assert spikerate("report", "run").returncode == 0
    assert not (here / "imported").exists()
    assert spikerate("eval", "run", "--rule", "stranger.trap:Trap").returncode == 2
    assert (here / "imported").exists()  # the user has named it


@pytest.mark.parametrize(
    ("option", "path", "words"),
    [
        ("--network", "stranger.nowhere:make", "stranger.nowhere:make can't be imported: ModuleNotFoundError"),
        ("--network", "stranger.broken:make", "can't be imported: RuntimeError: the stranger's module fails"),
        ("--network", "stranger.networks:flaat", "there is no flaat, did you mean flat?"),
        ("--network", "stranger.networks:", "is no path to code of your own: give package.module:name"),
        ("--network", "resnet", "there is no model 'resnet': did you mean"),
        ("--network", "stranger.networks:width", "stranger.networks:width is a int: give a function"),
        ("--network", "stranger.networks:Wavy", "stranger.networks:Wavy is a class"),
        ("--network", "stranger.networks:other", "stranger.networks:other can't make a network"),
        ("--rule", "stranger.parts:Priceless", "abstract method '?passes"),
        ("--rule", "stranger.parts:Stranger", "stranger.parts:Stranger does not inherit from Rule, as a rule does"),
        ("--rule", "stranger.parts:Unwritable", "stranger.parts:Unwritable can't be kept in a file: rule.weights"),
        ("--neuron", "stranger.parts:Silent", "stranger.parts:Silent is no dataclass"),
        ("--neuron", "stranger.parts:Dead", "ReLU has no spikes"),
        ("--loss", "stranger.parts:louder", "stranger.parts:louder does not inherit from Loss"),
    ],
)
def test_what_is_no_such_part_is_refused_when_the_run_is_made(option: str, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        with_kinds(RUN, {option: path})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (networks.wavy, "stranger.networks:wavy does not run: TypeError: sin has no rule for a spiking signal"),
        (networks.few, r"stranger.networks:few gives a signal \[1, 1\] for one sample: give logits \[B, K\], here \[1, 2\]"),
        (networks.none, "stranger.networks:none makes a str"),
        (networks.lost, "stranger.networks:lost makes no network for samples"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(make: Any, words: str, tmp_path: Path) -> None:
    data = load(RUN.data, RUN.T)
    with pytest.raises(ValueError, match=words):
        begin(tmp_path / "run", replace(RUN, model=OwnNetwork(make)), data, {})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "rule", "others", "words"),
    [
        (networks.looped, RateBP(), [BPTT(), SLTT(), OTTT()], "Recurrent has no gradient through firing rates"),
        (networks.late, SLTT(), [BPTT(), RateBP()], "the v_reset of a ParametricLIF is learned, and acts on later steps"),
        (networks.late, OTTT(), [BPTT(), RateBP()], "the v_reset of a ParametricLIF is learned, and acts on later steps"),
    ],
)
def test_a_layer_without_a_gradient_is_refused_before_anything_is_written(
    make: Any, rule: Any, others: list[Any], words: str, tmp_path: Path
) -> None:
    data, run = load(RUN.data, RUN.T), replace(RUN, model=OwnNetwork(make), loss=CrossEntropy())
    with pytest.raises(ValueError, match=words):
        begin(tmp_path / "run", replace(run, rule=rule), data, {})
    assert not (tmp_path / "run").exists()
    for other in others:
        check_fits(replace(run, rule=other), data)


@dataclass(frozen=True)
class Later(Rule):
    """Backpropagation through time that leaves the first step out, so that of one step nothing is left."""

    def __call__(self, network: Any, x: Tensor) -> Any:
        return BPTT()(network, x[1:])

    def passes(self, T: int) -> float:
        return 3 * T


def test_a_rule_that_wants_more_than_one_step_is_left_to_the_training() -> None:
    check_fits(replace(RUN, rule=Later(), loss=CrossEntropy()), load(RUN.data, RUN.T))


@pytest.mark.parametrize("neuron", [n for n in PARTS["--neuron"].kinds if n != "relu"])
def test_every_neuron_goes_with_whatever_looks_at_shapes_alone(neuron: str) -> None:
    """Self-distillation and the sizes of a transformer are checked on the meta device."""
    data, run = load(RUN.data, RUN.T), with_kinds(Run(RUN.data, T=2), {"--neuron": neuron})
    if isinstance(run.neuron, LearningNeuron):
        run = replace(run, neuron=replace(run.neuron, learn_threshold=True))
    check_fits(replace(run, loss=SelfDistillation()), data)
    check_fits(replace(run, model=Model("spikformer", 1, depth=2), data=replace(run.data, size=32)), data)


def test_a_neuron_written_as_one_step_is_compiled_under_bptt_only() -> None:
    with pytest.raises(
        ValueError, match=r"^neuron is of the kind stranger.parts:Slowly, written as one step, which is compiled"
    ):
        replace(RUN, compile=True)
    assert replace(RUN, compile=True, rule=BPTT(), loss=CrossEntropy()).compile


def test_branches_want_stages() -> None:
    data = load(RUN.data, RUN.T)
    check_fits(replace(RUN, loss=SelfDistillation()), data)
    with pytest.raises(ValueError, match="SelfDistillation wants branches, and the network is a Sequential"):
        check_fits(replace(RUN, loss=SelfDistillation(), model=OwnNetwork(networks.flat)), data)


def test_the_trainer_takes_any_module(tmp_path: Path) -> None:
    data = load(RUN.data, RUN.T)
    network = networks.flat(2, (1, 8, 8), LIF)
    before = network[1].weight.clone()  # type: ignore[index, union-attr]
    state = Trainer(RUN, data, RunFolder.create(tmp_path / "run", RUN, {}), network=network).train()
    assert state.network is network and not torch.equal(before, network[1].weight)  # type: ignore[index, arg-type]
    with pytest.raises(ValueError, match="the network, a Linear, does not run"):
        Trainer(RUN, data, RunFolder(tmp_path / "run"), network=nn.Linear(3, 2)).train()


def test_other_data_of_the_same_reader_are_noticed(spikerate: Command, here: Path, trained: RunFolder) -> None:
    file = here / "stranger" / "parts.py"
    file.write_text(file.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    done = spikerate("eval", "run", "--weights", "last", *OWN)
    assert done.returncode == 2 and "its checksums differ (train)" in done.stderr


def test_only_code_of_ones_own_is_named_again() -> None:
    with pytest.raises(ValueError, match="--rule bptt: a run has its own parts"):
        take_own(["run", "--rule", "bptt"])
    own, rest = take_own(["run", "--neuron", "stranger.parts:Slowly", "--T", "3"])
    assert own.code == {"stranger.parts:Slowly": parts.Slowly, "stranger.parts:Gaussian": parts.Gaussian}
    assert rest == ["run", "--T", "3"]


def test_a_run_is_read_as_it_was_written() -> None:
    assert decode(Run, json.loads(json.dumps(encode(RUN))), own=Own.of(RUN)) == RUN
    fields = json.loads(json.dumps(encode(RUN))) | {"rule": {"type": "stranger.parts:Louder", "lr": 1.0}}
    with pytest.raises(ValueError, match=r"run\.rule is stranger\.parts:Louder, which does not inherit from Rule"):
        decode(Run, fields, own=Own({**Own.of(RUN).code, "stranger.parts:Louder": NotARule}))


@dataclass(frozen=True)
class NotARule:
    __module__ = "stranger.parts"
    __qualname__ = "Louder"
    lr: float = 1.0


def test_values_say_what_they_cost() -> None:
    run = replace(RUN, T=6, epochs=1)
    assert training_flops(run, macs=10, branch_macs=0, samples=3) == 2 * 10 * (6 + 2) * 3
    assert training_flops(replace(run, rule=BPTT()), 10, 0, 3) == 2 * 10 * 18 * 3


# a neuron by its step ---------------------------------------------------------------------------------------------------


class Same(StepNeuron):
    """`LIF`, written as one step."""

    def step(self, current: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        v = current if state is None else 0.2 * state + current
        spike = Sigmoid().spike(v - 1)
        return spike, v - spike.detach()


@pytest.mark.parametrize("rule", [BPTT(), BPTT(chunk=2), RateBP(), RateBP(chunk=2), SLTT(), OTTT()], ids=str)
def test_a_neuron_by_its_step_is_the_same_under_every_rule(rule: Any) -> None:
    first, second = nn.Linear(5, 7).double(), nn.Linear(7, 3).double()
    x = 3 * torch.randn(5, 4, 5, dtype=torch.float64)
    found = []
    for neuron in (LIF, Same):
        network = nn.Sequential(first, neuron(), second)
        loss = rule(network, x).rate.square().sum()
        found.append([loss, *torch.autograd.grad(loss, list(network.parameters()))])
    torch.testing.assert_close(*found)
    assert found[0][1].abs().max() > 0


class Inhibiting(StepNeuron):
    """Each neuron sees the others of its layer."""

    def step(self, current: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        v = current - 0.5 * current.mean(1, keepdim=True)
        return (v > 0).to(v.dtype), v


def test_neurons_that_see_each_other_are_not_flattened_to_fuse_their_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_pays", lambda *_: True)
    x = torch.randn(3, 4, 5)
    wanted = (x - 0.5 * x.mean(2, keepdim=True) > 0).float()
    with torch.no_grad():
        assert torch.equal(BPTT()(Inhibiting(), x).steps, wanted)


def test_a_step_neuron_learns_nothing() -> None:
    with pytest.raises(ValueError, match=r"Same\.decay"):
        Same().decay = nn.Parameter(torch.ones(1))


# an operation -----------------------------------------------------------------------------------------------------------

swish = operation("nonlinear")(F.silu)


@operation("affine")
def mixed(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    return x * factor + 2 * y


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(5, 7)
        self.factor = nn.Parameter(torch.tensor(0.7))
        self.neuron = LIF()

    def forward(self, x: Any) -> Any:
        return swish(mixed(self.neuron(self.first(x)), self.second(x), self.factor))


@pytest.mark.parametrize("rule", [BPTT(), SLTT()], ids=str)
@pytest.mark.parametrize("chunk", [None, 2])
def test_an_operation_of_ones_own(rule: Any, chunk: int | None) -> None:
    """At every step the function itself; the rate has its mean, and under RateBP at T = 1 the same gradient."""
    network, x = Mixing().double(), torch.randn(5, 4, 5, dtype=torch.float64)
    steps = replace(rule, chunk=chunk)(network, x).steps
    spikes = BPTT()(nn.Sequential(network.first, network.neuron), x).steps
    torch.testing.assert_close(steps, F.silu(spikes * network.factor + 2 * network.second(x)))
    torch.testing.assert_close(RateBP(chunk=chunk)(network, x).rate, steps.mean(0))
    one, other = (r(network, x[:1]).rate.sum() for r in (BPTT(), RateBP()))
    torch.testing.assert_close(*(torch.autograd.grad(loss, list(network.parameters())) for loss in (one, other)))


def test_an_operation_under_finite_differences() -> None:
    network, x = Mixing().double(), torch.randn(5, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        changes = torch.randn(3, *network.first.weight.shape, dtype=torch.float64)
        rates = variant_rates(network, x, network.first.weight, changes)
        for change, rate in zip(changes, rates, strict=True):
            network.first.weight += change
            torch.testing.assert_close(rate, BPTT()(network, x).rate)
            network.first.weight -= change


def test_an_operation_of_tensors_is_the_function() -> None:
    assert torch.equal(swish(torch.ones(2)), F.silu(torch.ones(2)))
    with pytest.raises(ValueError, match="the verb of an operation is 'fire'"):
        operation("fire")  # type: ignore[arg-type]


# the page ---------------------------------------------------------------------------------------------------------------


def test_the_page_on_extending(spikerate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each example is complete in at most 25 lines, all together train by the page's command, and the last runs."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (tmp_path / "mine").mkdir()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert len(block.splitlines()) <= 25
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    command = re.findall(r"```text\n(spikerate train.*?)```", text, re.DOTALL)[0]
    done = spikerate(*shlex.split(command.replace("\\\n", ""))[1:])
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    try:
        runpy.run_path(str(tmp_path / "mine" / "train.py"))
        operations = runpy.run_path(str(tmp_path / "mine" / "operations.py"))
        network = nn.Sequential(nn.Conv2d(1, 3, 3), operations["Scaled"](3), LIF())
        assert RateBP()(network, torch.rand(2, 2, 1, 8, 8)).rate.requires_grad
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[name]


def test_ours_are_kinds_by_name() -> None:
    run = with_kinds(Run(), {"--network": "vggsnn", "--rule": "bptt"})
    assert (run.model.name, run.rule, run.loss) == ("vggsnn", BPTT(), CrossEntropy())
    assert with_kinds(Run(neuron=Neuron(0.3)), {"--rule": "ottt"}).rule == OTTT(decay=0.3)
    assert with_kinds(RUN, {"--optim": "sgd"}).optim == SGD(schedule=parts.Root())
