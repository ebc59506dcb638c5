"""Parts of a fast recipe in the training: a curriculum of T, lookahead, biases' learning rate, batch norm, whitening."""

from __future__ import annotations

import copy
import itertools
import json
import signal
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from spikerate import BPTT, LIF, CrossEntropy, RateBP, SelfDistillation, Staged
from spikerate.cli.main import main
from spikerate.data import Augment, Data, DataSet, Stored, load
from spikerate.losses import Terms
from spikerate.models import FromImages, Whitening, resnet18
from spikerate.runs import train
from spikerate.runs.config import Model, OwnNetwork, Phase, Rectified, Round, Run
from spikerate.runs.estimate import training_flops
from spikerate.runs.kinds import with_kinds
from spikerate.runs.laps import Laps
from spikerate.runs.optim import SGD, AdamW, Muon
from spikerate.runs.record import RunFolder
from spikerate.runs.schedule import OneCycle
from spikerate.runs.start import Start
from spikerate.runs.state import State
from spikerate.runs.train import Trainer, build_network, fit_layers
from spikerate.runs.trained import Trained
from spikerate.system.codec import decode, encode
from spikerate.system.files import pack_tensors, read_tensors
from spikerate.system.interrupt import Interrupt, Interrupted
from support.networks import small_network
from support.runs import Silent, stopped_at_every_step

Spikerate = Callable[..., CompletedProcess[str]]
CPU = torch.device("cpu")
SMALL = Run(model=Model(width=2), epochs=2, batch=300, T=3)
CURRICULUM = (Phase(1, 0.4), Phase(2, 0.3))


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(Data("digits"), 1)


def watch_steps(monkeypatch: pytest.MonkeyPatch, look: Callable[[State, Any], None]) -> None:
    """Call `look(state, T)` after each step."""
    step = Trainer._step

    def watched(self: Trainer, state: State, forward: Any, parts: Any, careful: bool, T: int | None = None) -> Terms:
        terms = step(self, state, forward, parts, careful, T)
        look(state, T)
        return terms

    monkeypatch.setattr(Trainer, "_step", watched)


def trained(run: Run, data: DataSet, path: Path, **more: Any) -> State:
    return Trainer(run, data, RunFolder.create(path, run, {}), Silent(), **more).train()


# a curriculum of time steps ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), st.floats(1e-9, 0.24)), max_size=4), st.integers(1, 99), st.integers(1, 400))
def test_a_curriculum_comes_back_and_covers_the_run(parts: list[tuple[int, float]], T: int, steps: int) -> None:
    curriculum = tuple(Phase(t, share) for t, share in parts)
    assert tuple(Phase.parse(str(phase)) for phase in curriculum) == curriculum
    run = Run(T=T, curriculum=curriculum)
    assert decode(Run, json.loads(json.dumps(encode(run)))) == run
    seen = [run.T_at(k, steps) for k in range(steps)]
    ends = [round(sum(p.share for p in curriculum[:n]) * steps) for n in range(len(curriculum) + 1)]
    by_hand = [p.T for p, (a, b) in zip(curriculum, itertools.pairwise(ends), strict=True) for _ in range(a, b)]
    assert seen == by_hand + [T] * (steps - len(by_hand))
    assert run.mean(float) == pytest.approx(
        sum(p.share * p.T for p in curriculum) + (1 - sum(p.share for p in curriculum)) * T
    )
    assert sum(phase.share for phase in run.phases) == pytest.approx(float(bool(curriculum)))


def test_the_operations_of_a_curriculum_are_those_of_its_steps() -> None:
    run = Run(T=4, epochs=10, curriculum=(Phase(1, 0.5), Phase(2, 0.3)))
    own = training_flops(run, 9, 4, 7)
    parts = zip((1, 2, 4), (5, 3, 2), strict=True)
    assert own == pytest.approx(sum(training_flops(replace(run, T=T, epochs=n, curriculum=()), 9, 4, 7) for T, n in parts))
    ann = training_flops(replace(run, T=1, curriculum=(), neuron=Rectified(), rule=BPTT()), 9, 0, 7)
    assert training_flops(run, 9, 0, 7) / ann == pytest.approx(0.5 + 0.3 * 4 / 3 + 0.2 * 2)  # (T + 2) / 3
    assert (run.times, run.in_words) == ("T = 1 -> 2 -> 4", "T = 1 -> 2 -> 4, 10 epochs")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Phase(0, 0.5), "curriculum.T is 0"),
        (lambda: Phase(1, 1.0), "curriculum.share is 1.0: give a fraction"),
        (lambda: Phase(1, float("nan")), "curriculum.share is nan"),
        (lambda: Phase.parse("1:"), "'1:' is no part of a curriculum: give T:SHARE, as 1:0.5 2:0.3"),
        (lambda: Run(curriculum=(Phase(1, 0.5), Phase(2, 0.5))), "1:0.5 2:0.5 leaves no step to T = 4"),
        (lambda: Run(T=1, neuron=Rectified(), curriculum=CURRICULUM), "an ANN has no time steps"),
        (lambda: Run(data=Data("n-mnist"), curriculum=CURRICULUM), "recordings are cut into T frames"),
        (
            lambda: Run(T=9, compile=True, curriculum=tuple(Phase(t, 0.1) for t in (1, 2, 3, 4))),
            "curriculum has 5 different T",
        ),
        (lambda: Run(bn_momentum=0), "bn_momentum is 0: give a number in"),
        (lambda: SGD(bias_lr=0), "optim.bias_lr is 0"),
        (lambda: AdamW(bias_lr=float("nan")), "optim.bias_lr is nan"),
        (lambda: Muon(bias_lr=-1), "optim.bias_lr is -1"),
        (lambda: SGD(lookahead=0), "optim.lookahead is 0: give a number of steps"),
        (lambda: SGD(lookahead=5, ema=0.9), "optim.lookahead is 5: give None, or optim.ema None"),
        (lambda: SGD(lookahead_keep=1), "optim.lookahead_keep is 1"),
        (lambda: SGD(lookahead_power=-1), "optim.lookahead_power is -1"),
        (lambda: Whitening(3, 7), "out_channels is 7: give an even number from 2 to 24"),
        (lambda: Whitening(3, 26), "out_channels is 26"),
        (lambda: Whitening(0), "in_channels is 0"),
        (lambda: Whitening(3, kernel=60), "a number of values in a patch"),
        (lambda: Whitening(1, kernel=3).fit([torch.rand(2, 1, 2, 2)]), r"3 x 3 patches needs larger images than \[2, 2\]"),
        (lambda: Whitening(1).fit([]), "whitening needs images"),
        (lambda: Whitening(1).fit([torch.full((2, 1, 4, 4), torch.nan)]), "their values finite"),
    ],
)
def test_what_can_not_be_is_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_run_has_the_steps_of_its_curriculum_and_goes_on_otherwise(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T by the step, also within an epoch; one schedule, one optimiser; validation with the last T."""
    run = replace(SMALL, curriculum=CURRICULUM, optim=SGD(loss_scale="1/T", schedule=OneCycle()))
    seen, scales, rates, looks = [], [], [], []
    scale = SGD.scale
    monkeypatch.setattr(SGD, "scale", lambda self, T: scales.append(T) or scale(self, T))
    monkeypatch.setattr(train, "answers", lambda *of, answers=train.answers: looks.append(of[3]) or answers(*of))
    optimizers = set()

    def look(state: State, T: Any) -> None:
        seen.append(T)
        rates.append(state.optimizers[0].param_groups[0]["lr"])
        optimizers.add(id(state.optimizers[0]))

    watch_steps(monkeypatch, look)
    state = trained(run, digits, tmp_path / "run")
    assert seen == scales == [1, 1, 1, 2, 2, 2, 3, 3]
    assert rates == pytest.approx([run.optim.lr_at(k, 8) for k in range(8)])
    assert len(optimizers) == 1 and set(looks) == {3}
    assert [row["T"] for row in state.rows] == [2, 3]
    plain = trained(replace(run, curriculum=()), digits, tmp_path / "plain")
    assert "T" not in plain.rows[0]


def test_the_first_part_is_a_run_of_that_t(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step for step to the same bits, while T is the same."""
    after: dict[str, list[Tensor]] = {}
    for name, run in (("own", replace(SMALL, curriculum=CURRICULUM)), ("other", replace(SMALL, T=1))):
        with monkeypatch.context() as patch:
            found = after[name] = []
            watch_steps(patch, lambda state, T, found=found: found.append(next(state.network.parameters()).clone()))
            trained(run, digits, tmp_path / name)
    same = [torch.equal(a, b) for a, b in zip(after["own"], after["other"], strict=True)]
    assert same == [True] * 3 + [False] * 5


def test_each_t_is_compiled_once(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(Run, "build", lambda self, classes, shape: staged(shape[0], classes))
    monkeypatch.setattr(
        train,
        "compiler",
        lambda run, device, say: lambda f: torch.compile(f, fullgraph=True, dynamic=False, backend=counter),
    )
    run = replace(SMALL, epochs=3, curriculum=(Phase(1, 0.3), Phase(2, 0.2), Phase(1, 0.1), Phase(4, 0.1)), compile=True)
    watch = Silent()
    Trainer(run, digits, RunFolder.create(tmp_path / "run", run, {}), watch).train()
    evaluated = len({128, 180 - 128})
    assert counter.frame_count <= len({1, 2, 3, 4}) + evaluated
    said = [line.partition(" took")[0] for line in watch.lines if "compiled" in line]
    assert said == ["compiled: the first step", *(f"compiled for T = {T}: the step" for T in (2, 4, 3))]
    torch.compiler.reset()


def staged(in_channels: int, num_classes: int, whitening: bool = False) -> Staged:
    first = Whitening(in_channels, 4, 2, 1) if whitening else nn.Conv2d(in_channels, 4, 2, padding=1)
    stem = nn.Sequential(first, nn.BatchNorm2d(4), LIF())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, num_classes))
    return Staged(stem, {"a": nn.AvgPool2d(2)}, head)


def test_on_the_command_line(spikerate: Spikerate, tmp_path: Path) -> None:
    words = ["train", "digits-rate", "--width", "2", "--batch", "300", "--epochs", "2", "--T", "2", "--curriculum", "1:0.5"]
    more = ["--loss.smoothing", "0.1", "--loss.scale", "0.5", "--bn-momentum", "0.4", "--optim.bias-lr", "8"]
    done = spikerate(*words, *more, "--optim.lookahead", "3", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "T = 1 -> 2, 2 epochs" in done.stdout
    run = RunFolder(tmp_path / "run").config()
    assert run.curriculum == (Phase(1, 0.5),) and run.bn_momentum == 0.4
    assert (run.optim, run.loss) == (SGD(bias_lr=8, lookahead=3), CrossEntropy(0.1, 0.5))
    for told in (spikerate("reproduce", "run"), spikerate("report", "run"), spikerate("train", "--resume", "run")):
        assert told.returncode == 0, told.stderr
    wrong = spikerate(*words, "2:0.5")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "leaves no step to T = 2" in wrong.stderr


def test_what_has_no_time_has_no_curriculum() -> None:
    run = replace(SMALL, curriculum=CURRICULUM, before=(Round(None, 1, 0.1), Round(2, 1, 0.1)))
    assert with_kinds(replace(run, before=()), {"--neuron": "relu"}).curriculum == ()
    assert [own.curriculum for own in run.rounds] == [(), (), CURRICULUM]


# nothing is lost --------------------------------------------------------------------------------------------------------

STOPPED = {
    "curriculum": replace(
        SMALL,
        data=Data(augment=Augment(mixup=0.5, cutmix=1.0)),
        curriculum=CURRICULUM,
        loss=SelfDistillation(smoothing=0.1, scale=0.5),
        bn_momentum=0.4,
    ),
    "lookahead": replace(
        SMALL,
        T=1,
        curriculum=(Phase(2, 0.6),),
        optim=SGD(nesterov=True, lookahead=3, lookahead_keep=0.8, lookahead_power=3, bias_lr=8),
    ),
    "ema": replace(
        SMALL,
        data=Data(augment=Augment(alternating_flip=True, translate=1)),
        curriculum=CURRICULUM,
        optim=AdamW(ema=0.9, bias_lr=2),
    ),
    "whitening": replace(SMALL, model=OwnNetwork(lambda k, s, n: staged(s[0], k, True)), curriculum=CURRICULUM),
}


@pytest.mark.parametrize("name", STOPPED)
def test_every_step_is_a_place_to_stop(digits: DataSet, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = STOPPED[name]
    whole = trained(run, digits, tmp_path / "whole")
    folder = RunFolder.create(tmp_path / "parts", run, {})

    def look() -> None:
        kept = read_tensors(folder.state_file)[1]
        assert set(kept["spent"]) == ({"seconds", "train_seconds", "compile_seconds"} if kept["step"] else set())

    parts, stops = stopped_at_every_step(run, digits, folder, look)
    assert stops == 7
    tensors, others = whole.tensors(), parts.tensors()
    assert tensors.keys() == others.keys()
    assert [key for key in tensors if not torch.equal(tensors[key], others[key])] == []


def test_the_time_before_a_stop_counts() -> None:
    first = Laps({})
    first.start -= 10
    for took, new in ((3.0, True), (1.0, False), (1.0, False), (2.0, True)):
        first.step(took, new)
    before = first.so_far()
    assert before == pytest.approx({"seconds": 10, "train_seconds": 6, "compile_seconds": 4}, abs=0.1)
    second = Laps(before)
    second.start -= 5
    second.step(4.0, True)
    second.step(1.0, False)
    assert second.so_far(4.0) == pytest.approx({"seconds": 15, "train_seconds": 7, "compile_seconds": 7}, abs=0.1)


def without_added(value: Any, told: Any) -> None:
    """Remove from a record what earlier versions did not have."""
    for one in fields(value):
        if "added" in one.metadata:
            del told[one.name]
        elif is_dataclass(part := getattr(value, one.name)):
            without_added(part, told[one.name])


def test_a_run_of_an_earlier_version_goes_on(digits: DataSet, tmp_path: Path) -> None:
    """Its record lacks fields that came later, and its checkpoint the time that was spent."""
    run = SMALL
    whole, path = trained(run, digits, tmp_path / "whole"), tmp_path / "older"
    stop = Interrupt()
    stop.signal = signal.SIGTERM
    with pytest.raises(Interrupted):
        trained(run, digits, path, stop=stop)
    record = json.loads((path / "run.json").read_text())
    without_added(run, record["run"])
    assert len(json.dumps(record["run"])) < len(json.dumps(encode(run))) - 100
    (path / "run.json").write_text(json.dumps(record))
    tensors, facts = read_tensors(path / "last.safetensors")
    del facts["spent"]
    (path / "last.safetensors").write_bytes(pack_tensors(tensors, facts))
    again = Trainer(RunFolder(path).config(), digits, RunFolder.open(path), Silent()).train()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in whole.tensors().items())


# optimisers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", [SGD(0.1, bias_lr=64), AdamW(0.1, bias_lr=64), Muon(0.1, adamw_lr=0.01, bias_lr=64)])
def test_biases_have_a_learning_rate_of_their_own(optim: Any) -> None:
    network = resnet18(width=2)
    state = State(network, optim.build(network))
    state.set_lr(0.5)
    groups = {id(p): group for o in state.optimizers for group in o.param_groups for p in group["params"]}
    own = 0.01 if isinstance(optim, Muon) else 0.1
    vectors = [(name, groups[id(p)]) for name, p in network.named_parameters() if p.dim() == 1]
    assert {group["weight_decay"] for _, group in vectors} == {0}
    for name, group in vectors:
        assert group["lr"] == pytest.approx(own * (32 if name.endswith("bias") else 0.5)), name
    plain = [len(o.param_groups) for o in replace(optim, bias_lr=1.0).build(network)]
    assert plain == ([1, 2] if isinstance(optim, Muon) else [2])  # as in the checkpoints of earlier versions


def test_lookahead_is_that_of_a_hand_loop(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithm 1 of the paper around the same optimiser; what is evaluated are the slow weights."""
    optim = SGD(0.1, lookahead=3, lookahead_keep=0.8, lookahead_power=2)
    run = replace(SMALL, optim=optim, epochs=2)
    torch.manual_seed(run.seed)
    slow = [p.detach().clone() for p in build_network(run, 10, (1, 8, 8), CPU).parameters()]
    steps = itertools.count(1)
    fast: list[Tensor] = []

    def look(state: State, T: Any) -> None:
        k = next(steps)
        if k % 3 == 1 and k > 1:  # which began from the slow weights
            assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
        if k % 3 == 0:
            keep = 0.8 * (k / 8) ** 2
            for s, p in zip(slow, state.network.parameters(), strict=True):
                s.copy_(keep * s + (1 - keep) * p.detach())

    begin = State.set_lr

    def kept(self: State, share: float) -> None:
        fast[:] = [p.detach().clone() for p in self.network.parameters()]
        begin(self, share)

    monkeypatch.setattr(State, "set_lr", kept)
    watch_steps(monkeypatch, look)
    monkeypatch.setattr("torch.equal", torch.allclose)  # torch's lerp rounds otherwise
    state = trained(run, digits, tmp_path / "run")
    assert state.average is state.trained is not None
    for s, p in zip(slow, state.average.parameters(), strict=True):
        torch.testing.assert_close(s, p)


def test_the_momentum_of_batch_norm_is_the_runs() -> None:
    for run in (replace(SMALL, bn_momentum=0.4), replace(SMALL, bn_momentum=0.4, loss=SelfDistillation())):
        network = run.build(10, (1, 8, 8))
        assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.4}
    own = OwnNetwork(lambda k, s, n: nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), nn.Flatten(), nn.Linear(64, k)))
    assert next(replace(SMALL, model=own).build(10, (1, 8, 8)).children()).momentum == 0.3


# whitening --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "kernel", "out"), [(3, 2, None), (3, 3, 20), (1, 2, 4), (2, 1, 4), (3, 2, 2)])
def test_patches_are_white(C: int, kernel: int, out: int | None) -> None:
    """Uncorrelated, of equal size but for eps, in both signs, the largest components first; whatever the batches are."""
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(40, C, 12, 12), 3, 1) @ torch.randn(10, 10) + 0.3
    layer = Whitening(C, out, kernel, eps=1e-4)
    assert isinstance(layer, FromImages) and not isinstance(nn.Conv2d(1, 1, 1), FromImages)
    layer.fit([images[:7], images[7:]])
    weight, n = layer.convolution.weight, len(layer.convolution.weight) // 2
    assert n == (out or 2 * C * kernel**2) // 2
    assert torch.equal(weight[:n], -weight[n:]) and layer.convolution.bias.count_nonzero() == 0
    assert not weight.requires_grad and layer.convolution.bias.requires_grad
    y = layer(images).transpose(0, 1).flatten(1)[:n].double()
    moments = y @ y.T / y.shape[1]
    patches = F.unfold(images.double(), kernel).transpose(0, 1).flatten(1)
    values = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1]).flip(0)[:n]
    torch.testing.assert_close(moments, torch.diag(values / (values + 1e-4)), atol=2e-3, rtol=1e-3)
    other = Whitening(C, out, kernel, eps=1e-4)
    other.fit(images.split(11))
    torch.testing.assert_close(other.convolution.weight, weight, atol=1e-3, rtol=1e-3)


def test_of_a_recording_all_frames_count() -> None:
    frames = torch.rand(5, 3, 2, 8, 8)
    one, other = Whitening(2), Whitening(2)
    one.fit([frames])
    other.fit([frames.flatten(0, 1)])
    assert torch.equal(one.convolution.weight, other.convolution.weight)


@pytest.mark.parametrize("rule", [RateBP(), BPTT()], ids=str)
def test_the_bias_of_a_frozen_layer_has_the_gradient_of_a_free_one(rule: Any) -> None:
    torch.manual_seed(0)
    network = staged(2, 5, whitening=True).double()
    free = copy.deepcopy(network)
    free.stem[0].convolution.weight.requires_grad = True  # type: ignore[index]
    x = torch.rand(4, 2, 6, 6, dtype=torch.float64).expand(3, 4, 2, 6, 6)
    for one in (network, free):
        rule(one, x).rate.square().sum().backward()
    assert network.stem[0].convolution.weight.grad is None  # type: ignore[index]
    for (name, p), q in zip(network.named_parameters(), free.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None and torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]


def test_a_fresh_run_whitens_by_its_training_images_alone(digits: DataSet, tmp_path: Path) -> None:
    """The held-out images may be any; the layer stays as it is, is kept in the checkpoint, and is not computed anew."""
    run = replace(SMALL, epochs=1, model=OwnNetwork(lambda k, s, n: staged(s[0], k, True)))
    noise = Stored(torch.randint(0, 255, (180, 1, 8, 8), dtype=torch.uint8), digits.validation.labels)
    whole = trained(run, digits, tmp_path / "one")
    other = trained(run, replace(digits, validation=noise, test=noise), tmp_path / "two")
    fitted = build_network(run, 10, (1, 8, 8), CPU)
    fit_layers(fitted, digits)
    name = "stem.0.0.weight"
    kernels = fitted.state_dict()[name]
    for state in (whole, other):
        assert torch.equal(state.network.state_dict()[name], kernels)
    (weights, _), (last, _) = (read_tensors(tmp_path / "one" / f"{of}.safetensors") for of in ("best", "last"))
    assert torch.equal(weights[f"network.{name}"], kernels) and torch.equal(last[f"network.{name}"], kernels)
    assert not any("optimizer" in key and value.shape == kernels.shape for key, value in last.items())
    dark = replace(digits, train=Stored(digits.train.samples // 3, digits.train.labels))  # type: ignore[attr-defined]
    assert not torch.equal(trained(run, dark, tmp_path / "dark").network.state_dict()[name], kernels)

    class Handed:
        def hand_on(self, network: nn.Module) -> None:
            network.load_state_dict(whole.network.state_dict())

    handed = trained(run, dark, tmp_path / "handed", start=Handed())
    assert torch.equal(handed.network.state_dict()[name], kernels)


def whitened(num_classes: int, in_shape: tuple[int, int, int], neuron: Callable[[], nn.Module]) -> nn.Module:
    return staged(in_shape[0], num_classes, whitening=True)


def test_a_whitened_network_is_exported_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nir")
    from spikerate import load as load_network
    from spikerate.exchange.export import export
    from spikerate.exchange.nir import from_nir, read_nir

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_whitened.py").write_text(
        "from torch import nn\nfrom spikerate import LIF, Staged\nfrom spikerate.models import Whitening\n"
        "def make(num_classes, in_shape, neuron):\n"
        "    stem = nn.Sequential(Whitening(in_shape[0]), nn.BatchNorm2d(8), LIF(v_reset=0.0))\n"
        "    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 7 * 7, num_classes))\n"
        "    return Staged(stem, {'a': nn.Identity()}, head)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = [
        "digits-esd-hard",
        "--network",
        "mine_whitened:make",
        "--loss",
        "cross-entropy",
        "--epochs",
        "1",
        "--subset",
        "60",
    ]
    assert main(["train", *words, "--batch", "20", "--out", "run"]) == 0
    import mine_whitened  # type: ignore[import-not-found]

    network = load_network("run", mine_whitened.make)
    record = RunFolder.open(Path("run"), own_of(mine_whitened.make)).record()
    for suffix in ("nir", "pt2", "safetensors"):
        export(Trained.of_run(record), Path(f"net.{suffix}"))
    x = torch.rand(6, 1, 8, 8)
    x = x.expand(4, *x.shape)
    back = from_nir(read_nir(Path("net.nir")))
    torch.testing.assert_close(BPTT()(back, x).rate, BPTT()(network, x).rate, atol=1e-4, rtol=1e-4)
    weights = load_network("net.safetensors", mine_whitened.make).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert Start.read(Path("net.safetensors"), own_of(mine_whitened.make)).weights["stem.0.0.weight"].shape == (8, 1, 2, 2)


def own_of(*code: Any) -> Any:
    from spikerate.system.codec import Own

    return Own.of(*code)


def test_networks_without_such_a_layer_stay_as_they_are(digits: DataSet) -> None:
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    fit_layers(network, digits)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
