"""Optimisers and schedules do what torch's do, and a run by any of them goes on to the same bits."""

from __future__ import annotations

import copy
import itertools
import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import update_bn

from spikerate import ATan, FiringRates, RateBP, RatePenalty, SelfDistillation
from spikerate.data import Data, DataSet, Part, epoch_batches, load
from spikerate.losses import Terms
from spikerate.measure.evaluate import answers, over_time
from spikerate.models import resnet18, resnet19
from spikerate.rules import BPTT, OTTT
from spikerate.runs.config import Model, Neuron, Rectified, Run
from spikerate.runs.kinds import PARTS, take_kinds, with_kinds
from spikerate.runs.optim import SGD, AdamW, Muon, OptimizerFactory
from spikerate.runs.presets import preset
from spikerate.runs.record import RunFolder
from spikerate.runs.schedule import Constant, Cosine, Linear, OneCycle, Schedule, Step
from spikerate.runs.state import State
from spikerate.runs.train import Outputs, Trainer, build_network
from spikerate.system.codec import encode
from spikerate.system.files import pack_tensors, read_tensors
from support.processes import Processes
from support.runs import ARGUMENTS, Silent, assert_same, stopped_at_every_step, until_finished

CPU = torch.device("cpu")
SMALL = Run(model=Model(width=2), epochs=2, batch=300, T=2)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(Data("digits"), 1)


@dataclass(frozen=True)
class RMSprop(OptimizerFactory):
    """One that is not ours."""

    lr: float = 1e-3

    def build(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        return [torch.optim.RMSprop(network.parameters(), lr=self.lr, centered=True)]


class Odd(torch.optim.Optimizer):
    """Keeps what no other does: a tensor that has no parameter's shape, a list, a dict, and a setting that changes."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1, "seen": 0, "pair": (1, 2.5), "note": "first"})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["seen"] += 1
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"history": [], "norms": {"last": None}, "count": 1.5, "wide": torch.zeros(3, 1)}
                state["history"] = [*state["history"], p.grad.clone()][-2:]
                state["norms"]["last"] = p.grad.norm()
                state["wide"] += group["seen"]
                p -= group["lr"] / group["seen"] * sum(state["history"]) / (1 + state["norms"]["last"] + state["wide"].sum())


# schedules --------------------------------------------------------------------------------------------------------------


def by_torch(make: Callable[[torch.optim.Optimizer], Any], warm: int, steps: int) -> list[float]:
    """The learning rates of a scheduler of torch's after `warm` steps of linear warm-up, as shares."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    after = make(optimizer)
    scheduler = after
    if warm:
        rise = lr_scheduler.LinearLR(optimizer, 1 / (warm + 1), total_iters=warm)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rise, after], [warm])
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@settings(max_examples=15, deadline=None)
@given(
    steps=st.integers(12, 60),
    warmup=st.sampled_from([0.0, 0.1, 0.25]),
    final=st.sampled_from([0.0, 0.01, 0.5]),
    kind=st.sampled_from(["cosine", "linear", "step", "constant"]),
)
def test_schedules_are_torchs(steps: int, warmup: float, final: float, kind: str) -> None:
    n = round(warmup * steps)
    pairs: dict[str, tuple[Schedule, Callable[[torch.optim.Optimizer], Any]]] = {
        "cosine": (Cosine(warmup, final), lambda o: lr_scheduler.CosineAnnealingLR(o, steps - n, final)),
        "linear": (Linear(warmup, final), lambda o: lr_scheduler.LinearLR(o, 1.0, final, steps - n)),
        "step": (
            Step(warmup, at=(0.5, 0.75)),
            lambda o: lr_scheduler.MultiStepLR(o, [round(0.5 * steps) - n, round(0.75 * steps) - n]),
        ),
        "constant": (Constant(warmup), lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    }
    own, torchs = pairs[kind]
    assert [own(k, steps) for k in range(steps)] == pytest.approx(by_torch(torchs, n, steps), abs=1e-9)


@pytest.mark.parametrize(("steps", "warmup", "final"), [(40, 0.3, 0.001), (100, 0.25, 0.01), (10, 0.5, 0.04)])
def test_one_cycle_is_torchs(steps: int, warmup: float, final: float) -> None:
    def torchs(optimizer: torch.optim.Optimizer) -> Any:
        return lr_scheduler.OneCycleLR(
            optimizer, 1.0, steps, pct_start=warmup, anneal_strategy="linear", div_factor=25, final_div_factor=0.04 / final
        )

    own = OneCycle(warmup, final=final)
    assert [own(k, steps) for k in range(steps)] == pytest.approx(by_torch(torchs, 0, steps))


@given(steps=st.integers(1, 9), warmup=st.sampled_from([0.0, 0.1, 0.5, 0.99]))
def test_every_schedule_is_a_share_at_every_step(steps: int, warmup: float) -> None:
    """However short the run is; and no step is wasted on a learning rate of 0."""
    for own in (Cosine(warmup), Linear(warmup), OneCycle(warmup, final=0.01), Step(warmup), Constant(warmup)):
        assert all(0 < own(k, steps) <= 1 for k in range(steps))
    assert [Linear(0.5)(k, 8) for k in range(8)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cosine(warmup=1), "schedule.warmup is 1"),
        (lambda: Cosine(final=-1), "schedule.final is -1"),
        (lambda: OneCycle(start=2), "schedule.start is 2"),
        (lambda: Step(at=(0.5, 1.0)), "schedule.at is"),
        (lambda: Step(factor=0), "schedule.factor is 0"),
        (lambda: AdamW(betas=(0.9, 1.0)), "optim.betas is"),
        (lambda: AdamW(eps=0), "optim.eps is 0"),
        (lambda: Muon(adamw_lr=0), "optim.adamw_lr is 0"),
        (lambda: SGD(clip=0), "optim.clip is 0"),
        (lambda: SGD(ema=1), "optim.ema is 1: give a number between 0 and 1, or None"),
        (lambda: SGD(momentum=0, nesterov=True), "optim.nesterov is True"),
        (
            lambda: Run(optim=3),
            "optim is of builtins:int: give an instance of a class that inherits from spikerate's OptimizerFactory",
        ),  # type: ignore[arg-type]
        (lambda: SGD().ema_at(0), "there is no average"),
    ],
)
def test_values_out_of_range(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_class_without_build_can_not_be_made() -> None:
    @dataclass(frozen=True)
    class Lazy(OptimizerFactory):
        lr: float = 1.0

    with pytest.raises(TypeError, match=r"abstract method '?build"):
        Lazy()  # type: ignore[abstract]


# optimisers -------------------------------------------------------------------------------------------------------------


def test_muon_takes_kernels_and_hidden_matrices_and_adamw_the_rest() -> None:
    run = replace(SMALL, model=Model("resnet19", width=4), loss=SelfDistillation())
    network = build_network(run, 10, (1, 8, 8), CPU)
    names = {id(p): name for name, p in network.named_parameters()}
    muon, adamw = Muon(lr=0.02, adamw_lr=0.001, weight_decay=0.1).build(network)
    others = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    decays = {names[id(p)]: group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    heads = {name for name, p in network.named_parameters() if p.dim() == 2 and p.shape[0] == 10}
    vectors = {name for name, p in network.named_parameters() if p.dim() == 1}
    assert len(heads) == 3
    assert set(others) == heads | vectors
    assert all(decays[name] == (0.1 if name in heads else 0) for name in others)
    shapes = [tuple(p.shape) for group in muon.param_groups for p in group["params"]]
    hidden = [p for name, p in network.named_parameters() if name not in others]
    assert shapes == [(len(p), p.numel() // len(p)) for p in hidden]
    assert any(p.dim() == 2 for p in hidden)
    assert [o.param_groups[0]["lr"] for o in (muon, adamw)] == [0.02, 0.001]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_muon_of_a_kernel_is_torchs_of_its_matrix(memory: torch.memory_format) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False)).to(memory_format=memory)  # type: ignore[call-overload]
    (kernel,) = network.parameters()
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    (muon,) = Muon(lr=0.1).build(network)
    torchs = torch.optim.Muon([matrix], lr=0.1, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        kernel.grad = torch.randn(8, 3, 3, 3)
        matrix.grad = kernel.grad.flatten(1)
        before = kernel.detach().clone()
        muon.step()
        torchs.step()
        assert not torch.equal(before, kernel)
        # In another order of the columns the sums of the orthogonalisation, in bfloat16, are rounded elsewhere.
        torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=0 if memory == torch.contiguous_format else 5e-3)


def test_muon_says_what_it_can_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is nothing for Muon: give adamw"):
        Muon().build(nn.Sequential(nn.Linear(3, 4)))
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"has no Muon: install torch 2\.9 or newer, or give adamw"):
        Muon().build(resnet18(width=2))


def test_adamw_and_nesterov_are_torchs() -> None:
    network = resnet19(width=2)
    (adamw,) = AdamW(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2).build(network)
    (sgd,) = SGD(nesterov=True).build(network)
    assert (type(adamw), type(sgd)) == (torch.optim.AdamW, torch.optim.SGD)
    matrices, vectors = adamw.param_groups
    assert {p.dim() for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(network.parameters()))
    assert [matrices[k] for k in ("lr", "betas", "eps", "weight_decay")] == [0.01, (0.8, 0.9), 1e-6, 0.2]
    assert vectors["weight_decay"] == 0
    assert all(group["nesterov"] for group in sgd.param_groups)


def test_a_step_clips_as_torch_does_and_tells_the_length_before(digits: DataSet, tmp_path: Path) -> None:
    run = replace(SMALL, optim=SGD(lr=0.5, momentum=0, weight_decay=0, clip=0.1, loss_scale="1/T"))
    network = build_network(run, 10, (1, 8, 8), CPU)
    other = copy.deepcopy(network)
    x, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    trainer = Trainer(run, digits, RunFolder(tmp_path), Silent())
    state = State(network, run.optim.build(network))
    terms = trainer._step(state, Outputs(network, run.rule), [Part(x, labels)], careful=False)
    (nn.functional.cross_entropy(run.rule(other, over_time(x, run.T)).rate, labels) / run.T).backward()
    norm = nn.utils.clip_grad_norm_(other.parameters(), 0.1)
    torch.optim.SGD(other.parameters(), lr=0.5).step()
    assert norm > 0.1
    torch.testing.assert_close(terms["gradient_norm"], norm)
    for own, torchs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, torchs)
        assert own.grad is None


@pytest.mark.parametrize("rule", [RateBP(), RateBP(chunk=1), BPTT()], ids=str)
def test_a_step_adds_the_penalty_on_firing_rates(digits: DataSet, tmp_path: Path, rule: Any) -> None:
    penalty = RatePenalty(target=0.5, weight=3.0)
    run = replace(SMALL, rule=rule, penalty=penalty, optim=SGD(lr=0.5, momentum=0, weight_decay=0))
    network = build_network(run, 10, (1, 8, 8), CPU)
    other = copy.deepcopy(network)
    x, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    state = State(network, run.optim.build(network))
    forward = Outputs(network, FiringRates(rule), with_rates=True)
    terms = Trainer(run, digits, RunFolder(tmp_path), Silent())._step(state, forward, [Part(x, labels)], careful=False)
    out, rates = FiringRates(rule)(other, over_time(x, run.T))
    by_hand = 3.0 * torch.stack([(rate.mean() - 0.5) ** 2 for rate in rates.values()]).mean()
    loss = nn.functional.cross_entropy(out.rate, labels) + by_hand
    torch.testing.assert_close((terms["loss"], terms["penalty"]), (loss.detach(), by_hand.detach()))
    loss.backward()
    torch.optim.SGD(other.parameters(), lr=0.5).step()
    for own, torchs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, torchs)


def test_the_learning_rate_follows_the_schedule(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every group of both optimisers, each from its own highest; the metrics have the first of each epoch."""
    run = replace(SMALL, optim=Muon(lr=0.02, adamw_lr=0.001, schedule=Linear(warmup=0.25)))
    seen: list[list[float]] = []
    step = Trainer._step

    def watched(self: Trainer, state: State, *rest: Any) -> Terms:
        seen.append([group["lr"] for optimizer in state.optimizers for group in optimizer.param_groups])
        return step(self, state, *rest)

    monkeypatch.setattr(Trainer, "_step", watched)
    state = Trainer(run, digits, RunFolder.create(tmp_path / "run", run, {}), Silent()).train()
    shares = [run.optim.schedule(k, 8) for k in range(8)]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert seen == [pytest.approx([0.02 * s, 0.001 * s, 0.001 * s]) for s in shares]
    assert [row["lr"] for row in state.rows] == pytest.approx([0.02 * shares[0], 0.02 * shares[4]])


# the average of the weights ---------------------------------------------------------------------------------------------


class Looked(nn.Module):
    """A network as torch's `update_bn` calls it."""

    def __init__(self, network: nn.Module, T: int) -> None:
        super().__init__()
        self.network, self.T = network, T

    def forward(self, x: Tensor) -> Tensor:
        return BPTT()(self.network, over_time(x, self.T)).rate


def test_the_average_is_that_of_a_hand_loop(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights by hand, statistics by torch's `update_bn`; validation images, best and last weights are the average's."""
    run = replace(SMALL, optim=SGD(ema=0.4))
    torch.manual_seed(run.seed)
    mean = [p.detach().clone() for p in build_network(run, 10, (1, 8, 8), CPU).parameters()]
    step, done = Trainer._step, itertools.count()

    def watched(self: Trainer, state: State, *rest: Any) -> Terms:
        terms = step(self, state, *rest)
        decay = min(0.4, (1 + (k := next(done))) / (10 + k))
        for m, p in zip(mean, state.network.parameters(), strict=True):
            m.copy_(decay * m + (1 - decay) * p.detach())
        return terms

    monkeypatch.setattr(Trainer, "_step", watched)
    folder = RunFolder.create(tmp_path / "run", run, {})
    state = Trainer(run, digits, folder, Silent()).train()
    average = state.average
    assert average is not None and next(done) == 8
    for m, p, raw in zip(mean, average.parameters(), state.network.parameters(), strict=True):
        torch.testing.assert_close(p, m)
        assert not torch.equal(p, raw)

    by_torch = copy.deepcopy(average)
    batches = [part.x for (part,) in epoch_batches(digits, run.batch, run.data.augment, run.seed, 1)]
    update_bn(batches, Looked(by_torch, run.T))
    for (name, own), torchs in zip(average.named_buffers(), by_torch.buffers(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(own, torchs, msg=lambda m, name=name: f"{name}: {m}")
    assert all(norm.momentum == 0.1 for norm in average.modules() if isinstance(norm, nn.BatchNorm2d))

    assert state.rows[-1]["validation"] == answers(average, digits, digits.validation, run.T).at_step[-1].value
    for name in ["last", *(["best"] if state.best is state.rows[-1] else [])]:
        again = build_network(run, 10, (1, 8, 8), CPU)
        folder.load_weights(name, again)
        for a, b in zip(again.state_dict().values(), average.state_dict().values(), strict=True):
            assert torch.equal(a, b)


# nothing is lost --------------------------------------------------------------------------------------------------------

RUNS = {
    "adamw": AdamW(schedule=OneCycle(), clip=0.5, ema=0.9),
    "muon": Muon(schedule=Step(warmup=0.2)),
    "nesterov": SGD(nesterov=True, schedule=Linear(), ema=0.99),
    "own": RMSprop(),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_step_is_a_place_to_stop(digits: DataSet, tmp_path: Path, name: str) -> None:
    run = replace(SMALL, optim=RUNS[name])  # type: ignore[arg-type]
    whole = Trainer(run, digits, RunFolder.create(tmp_path / "whole", run, {}), Silent()).train()
    parts, stops = stopped_at_every_step(run, digits, RunFolder.create(tmp_path / "parts", run, {}))
    assert stops == 7
    tensors, others = whole.tensors(), parts.tensors()
    assert tensors.keys() == others.keys()
    assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []
    assert whole.facts()["optimizers"] == parts.facts()["optimizers"]
    (best, _), (other, _) = (read_tensors(tmp_path / of / "best.safetensors") for of in ("whole", "parts"))
    assert all(torch.equal(best[key], other[key]) for key in best)


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_ten_sigkills_change_nothing(processes: Processes, tmp_path: Path, optim: str) -> None:
    chosen = ["--optim", optim, "--schedule", "one-cycle", "--optim.clip", "1", "--optim.ema", "0.9"]
    arguments = ["train", "digits-rate", *ARGUMENTS[2:], "--epochs", "2", *chosen]
    whole = processes.run(*arguments, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    statuses = until_finished(processes, tmp_path / "killed", signal.SIGKILL, 10, arguments)
    assert statuses.count(-signal.SIGKILL) >= 7
    assert statuses[-1] == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


KEPT: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta,
    "Adagrad": torch.optim.Adagrad,
    "Adafactor": torch.optim.Adafactor,
    "ASGD": torch.optim.ASGD,
    "Rprop": torch.optim.Rprop,
    "SGD without momentum": torch.optim.SGD,
    "Odd": Odd,
}


@pytest.mark.parametrize("name", KEPT)
def test_the_state_of_any_optimiser_is_kept(tmp_path: Path, name: str) -> None:
    def begun() -> State:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        return State(network, [KEPT[name](network.parameters())])

    def steps(state: State, first: int, n: int) -> None:
        for k in range(first, first + n):
            torch.manual_seed(k)
            state.set_lr(1 / (k + 1))
            state.network(torch.randn(5, 4)).square().sum().backward()
            state.optimizers[0].step()
            state.network.zero_grad()

    whole, stopped, resumed = begun(), begun(), begun()
    steps(whole, 0, 6)
    steps(stopped, 0, 3)
    file = tmp_path / "state"
    file.write_bytes(pack_tensors(stopped.tensors(), stopped.facts()))
    resumed.restore(*read_tensors(file), "the file")
    steps(resumed, 3, 3)
    a, b = whole.tensors(), resumed.tensors()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert whole.facts() == resumed.facts()


def test_a_state_of_another_optimiser_is_a_sentence() -> None:
    network = resnet18(width=2)
    kept = State(network, AdamW().build(network))
    for other, words in (
        (SGD(), r"it is of AdamW, but the run uses SGD"),
        (Muon(), r"it is of AdamW, but the run uses Muon, AdamW"),
    ):
        with pytest.raises(ValueError, match=f"the file has the state of another optimiser than run.json says .*{words}"):
            State(network, other.build(network)).restore(kept.tensors(), kept.facts(), "the file")
    facts = json.loads(json.dumps(kept.facts()))
    for spoiled in (None, [None], [{"type": "AdamW"}], [{"type": "AdamW", "state": 3}]):
        with pytest.raises(ValueError, match="the file has the state of another optimiser"):
            State(network, AdamW().build(network)).restore(kept.tensors(), facts | {"optimizers": spoiled}, "the file")


def test_a_state_that_no_file_can_hold_is_a_sentence() -> None:
    network = nn.Linear(1, 1)
    (optimizer,) = SGD().build(network)
    for value in (Path(), "text"):
        optimizer.state[network.weight]["note"] = value
        with pytest.raises(ValueError, match=r"the optimiser's state has optimizer\.0\.state\.0\.note, of type (Posix|s)"):
            State(network, [optimizer]).facts()


def test_a_run_of_an_earlier_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", SMALL, {})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"format": 1}))
    with pytest.raises(ValueError, match=r"run.json is not of format 2: use the version of spikerate that wrote it"):
        folder.config()


@pytest.mark.parametrize(
    "optim", [AdamW(schedule=Step(at=(0.3, 0.6, 0.9))), Muon(ema=0.9, schedule=OneCycle()), SGD(clip=1)]
)
def test_an_optimiser_comes_back_from_json(optim: Any, tmp_path: Path) -> None:
    run = replace(SMALL, optim=optim)
    assert RunFolder.create(tmp_path / "run", run, {}).config() == run


# kinds by name ----------------------------------------------------------------------------------------------------------


def test_kinds_are_taken_from_a_command_line() -> None:
    words = ["--T", "2", "--optim=muon", "--optim.lr", "1", "--optim.schedule", "step", "--loss", "tet", "--loss.pull", "0"]
    assert take_kinds(words) == (
        {"--optim": "muon", "--schedule": "step", "--loss": "tet"},
        ["--T", "2", "--optim.lr", "1", "--loss.pull", "0"],
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optim"], "--optim has no value: give one of sgd, adamw, muon"),
        (["--optim", "--T"], "--optim has no value"),
        (["--rule", "rtrl"], "there is no rule 'rtrl': give one of rate, bptt, sltt, ottt"),
        (["--surrogate=attan"], "there is no neuron.surrogate 'attan': did you mean atan?"),
        (["--neuron", "relu", "--surrogate", "atan"], "a neuron of kind Rectified has no surrogate"),
        (["--loss", "tet"], "TET needs a gradient at every step"),
    ],
)
def test_kinds_that_do_not_go_are_a_sentence(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_kinds(preset("digits-rate").run, take_kinds(words)[0])


@pytest.mark.parametrize(("option", "name"), [(option, name) for option, part in PARTS.items() for name in part.kinds])
def test_every_kind_can_be_chosen(option: str, name: str) -> None:
    run = preset("digits-bptt").run
    found = encode(with_kinds(run, {option: name}))
    for field in PARTS[option].field.split("."):
        found = found[field]
    assert found["type"] == PARTS[option].kinds[name].__name__


def test_what_goes_with_another_kind() -> None:
    run = preset("digits-dspike").run
    assert with_kinds(run, {}) == run == with_kinds(run, {"--optim": "sgd", "--surrogate": "dspike"})
    run = replace(run, optim=SGD(0.3, 0.5, clip=2.0, schedule=Cosine(0.1, 0.2)), neuron=replace(run.neuron, decay=0.7))
    assert with_kinds(run, {"--optim": "adamw"}).optim == AdamW(clip=2.0, schedule=Cosine(0.1, 0.2))
    assert with_kinds(run, {"--schedule": "linear"}).optim.schedule == Linear(0.1, 0.2)
    assert with_kinds(run, {"--schedule": "one-cycle"}).optim.schedule == OneCycle(final=0.2)
    ann = with_kinds(run, {"--neuron": "relu"})
    assert (ann.neuron, ann.T, ann.search) == (Rectified(), 1, None)
    other = with_kinds(run, {"--surrogate": "atan"})
    assert isinstance(other.neuron, Neuron)
    assert (other.neuron.surrogate, other.neuron.decay, other.search) == (ATan(), 0.7, None)
    assert with_kinds(run, {"--rule": "ottt"}).rule == OTTT(decay=0.7)


def test_the_help_lists_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    from spikerate.cli.main import main

    with pytest.raises(SystemExit):
        main(["train", "digits-esd", "--optim", "muon", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--surrogate" in told and "sgd|adamw|muon" in told.replace(" ", "").replace("│", "")
    assert "--optim.adamw-lr" in told
