"""Rounds before a run's own: an ANN as a run, weights handed on, and stopping anywhere."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from spikerate import BPTT, OTTT, SLTT, TET, CrossEntropy, RateBP, resnet18
from spikerate.cli.live import TrainingView
from spikerate.cli.main import main
from spikerate.data import load
from spikerate.losses import SelfDistillation
from spikerate.measure.health import stuck
from spikerate.measure.meter import Ledger, Meter
from spikerate.neuron import Rectifier
from spikerate.runs.config import Model, Rectified, Round, Run
from spikerate.runs.estimate import training_flops
from spikerate.runs.optim import SGD
from spikerate.runs.presets import preset
from spikerate.runs.record import RunFolder
from spikerate.runs.state import State
from spikerate.runs.train import Outputs
from spikerate.system.codec import decode, encode
from spikerate.system.files import read_tensors
from support.recordings import write_folder
from support.runs import assert_same

Spikerate = Callable[..., CompletedProcess[str]]
ANN = Run(model=Model(width=2), neuron=Rectified(), rule=BPTT(), T=1)
TINY = ["train", "digits-bptt", "--width", "2", "--subset", "40", "--batch", "20", "--T", "2", "--epochs", "2"]
ROUNDS = ["--before", "ann:2:0.1", "3:1:0.05"]
INSIDE = ["round1-ann", "round2-T3", ""]


# an ANN as a run --------------------------------------------------------------------------------------------------------


def gradients(network: nn.Module, logits: Tensor) -> list[Tensor]:
    """The loss, its gradients, and the buffers afterwards."""
    loss = CrossEntropy()([logits], torch.arange(8))["loss"]
    network.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None), *network.buffers()]


@pytest.mark.parametrize("rule", [BPTT(), BPTT(chunk=1), SLTT(), RateBP(), RateBP(chunk=1), OTTT()], ids=str)
def test_an_ann_is_the_network_of_torch(rule: Any) -> None:
    run = replace(ANN, rule=rule)
    network, plain = run.build(10, (1, 8, 8)).double(), resnet18(10, 1, 2, "relu").double()
    plain.load_state_dict(network.state_dict())
    x = torch.rand(8, 1, 8, 8).double()
    (logits,) = Outputs(network, run.rule)(x.unsqueeze(0))
    ours, theirs = gradients(network, logits), gradients(plain, plain(x))
    assert len(ours) == len(theirs) > 62
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_gain_of_a_rectifier_is_how_often_it_is_active() -> None:
    x = torch.randn(5, 3, 4)
    whole, (total, active) = Rectifier().trace(x, None)
    one, state = Rectifier().trace(x[:2], None)
    other, state = Rectifier().trace(x[2:], state)
    assert torch.equal(whole, torch.cat([one, other])) and torch.equal(whole, x.clamp(min=0))
    assert torch.equal(active, state[-1]) and torch.equal(active, (x > 0).sum(0))
    torch.testing.assert_close(total, state[-2])
    current = x.clone().requires_grad_()
    rate = RateBP()(lambda signal: signal.fire(Rectifier()), current).rate
    (gradient,) = torch.autograd.grad(rate.sum(), current)
    torch.testing.assert_close(gradient, (active / 5 / 5).expand(5, 3, 4))
    assert torch.equal(Rectifier()(x), x.clamp(min=0))


def test_what_is_counted_of_an_ann_are_active_units() -> None:
    network, ledger, x = nn.Sequential(nn.Flatten(), Rectifier()), Ledger(), torch.randn(1, 8, 20)
    Meter(ledger)(network, x)
    assert ledger.rates(network) == {"1": pytest.approx(float((x > 0).float().mean()))}
    assert stuck({"a": 0.0, "b": 1.0}, spiking=True) == {"a": "never fires", "b": "fires at every step"}
    assert stuck({"a": 0.0, "b": 1.0}, spiking=False) == {"a": "never fires"}


def test_the_presets_of_anns() -> None:
    for name in ("digits", "cifar10-small", "cifar10"):
        run, rival = preset(f"{name}-ann").run, preset(f"{name}-bptt").run
        assert run == replace(rival, T=1, neuron=Rectified())
        assert "ANN" in preset(f"{name}-ann").headline
    branched = replace(ANN, loss=SelfDistillation())
    assert len(Outputs(branched.build(10, (1, 8, 8)), branched.rule)(torch.rand(1, 2, 1, 8, 8))) == 4


# what a round is --------------------------------------------------------------------------------------------------------


@given(
    T=st.none() | st.integers(1, 99),
    epochs=st.integers(1, 10**6),
    lr=st.floats(1e-30, 1e12),
)
def test_a_round_comes_back_from_its_text_and_from_json(T: int | None, epochs: int, lr: float) -> None:
    found = Round(T, epochs, lr)
    assert Round.parse(str(found)) == found
    run = Run(before=(found, Round(3, 2, 0.1)))
    assert decode(Run, json.loads(json.dumps(encode(run)))) == run


def test_the_rounds_of_a_run() -> None:
    run = Run(
        rule=OTTT(),
        loss=TET(),
        optim=SGD(0.3, weight_decay=0),
        T=2,
        epochs=7,
        before=(Round(None, 5, 0.1), Round(6, 4, 0.2)),
    )
    first, second, last = run.rounds
    assert last == replace(run, before=())
    assert second == replace(last, T=6, epochs=4, optim=SGD(0.2, weight_decay=0))
    assert first == replace(last, T=1, epochs=5, optim=SGD(0.1, weight_decay=0), neuron=Rectified(), rule=BPTT())
    assert Run().rounds == (Run(),)
    assert training_flops(run, 10, 0, 7) == sum(training_flops(own, 10, 0, 7) for own in run.rounds)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Round(0, 1, 0.1), "before.T is 0"),
        (lambda: Round(None, 0, 0.1), "before.epochs is 0"),
        (lambda: Round(2, 1, float("inf")), "before.lr is inf"),
        (lambda: replace(ANN, T=2), "T is 2, but an ANN has no time steps: give 1"),
        (lambda: replace(ANN, before=(Round(2, 1, 0.1),)), "only the first round can be an ANN"),
        (lambda: Run(before=(Round(2, 1, 0.1), Round(None, 1, 0.1))), "only the first round can be an ANN"),
        (lambda: decode(Run, {k: v for k, v in encode(Run()).items() if k != "before"}), "has no field 'before': it was"),
        (lambda: decode(Run, encode(Run()) | {"before": [3]}), "run.before is '3'"),
        (lambda: decode(Run, encode(Run()) | {"before": {}}), "run.before is {}"),
        (lambda: decode(Run, encode(Run()) | {"before": [encode(Round(2, 1, 0.1)) | {"T": "2"}]}), "run.before.T is '2'"),
    ],
)
def test_a_wrong_round_is_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["ann:5"], "'ann:5' is no round: give ann:EPOCHS:LR or T:EPOCHS:LR, as ann:300:0.1 or 6:300:0.01"),
        (["4:3:1.2.3"], "'4:3:1.2.3' is no round"),
        (["4:3:nan"], "'4:3:nan' is no round"),
        (["3:1:0.1", "4:0:0.1"], "before.epochs is 0: give a number of epochs >= 1"),
        (["4:2:0"], "before.lr is 0.0: give a positive number"),
        (["3:1:0.1", "ann:1:0.1"], "only the first round can be an ANN"),
    ],
)
def test_a_wrong_round_is_refused_before_anything_starts(
    spikerate: Spikerate, tmp_path: Path, texts: list[str], words: str
) -> None:
    done = spikerate(*TINY, "--before", *texts)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network_are_not_handed_on(tmp_path: Path) -> None:
    class Neuronal(nn.Module):
        def __init__(self, *buffers: str) -> None:
            super().__init__()
            self.linear, self.surrogate = nn.Linear(2, 2), nn.Module()
            for name in buffers:
                self.surrogate.register_buffer(name, torch.ones(1))

    folder, ann = RunFolder.create(tmp_path / "run", ANN, {}), Neuronal()
    folder.save_weights("best", ann, {})
    spiking = Neuronal("temperature")
    folder.hand_on(spiking)
    assert torch.equal(spiking.linear.weight, ann.linear.weight)
    with pytest.raises(ValueError, match=r"best.safetensors is of another network .*: Missing key"):
        folder.load_weights("best", spiking)
    with pytest.raises(ValueError, match=r'of another network .*: Missing key\(s\) in state_dict: "surrogate.scale"'):
        folder.hand_on(Neuronal("scale"))
    folder.save_weights("best", Neuronal("scale"), {})
    with pytest.raises(ValueError, match=r"of another network .*: Unexpected key"):
        folder.hand_on(ann)


# a run with rounds ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*TINY, *ROUNDS, "--out", str(folder)]) == 0
    return folder


def assert_same_rounds(a: Path, b: Path) -> None:
    for name in INSIDE:
        assert_same(a / name, b / name)


def test_ann_then_three_steps_then_two(spikerate: Spikerate, whole: Path, tmp_path: Path) -> None:
    done = spikerate(*TINY, *ROUNDS, "--out", "run")
    assert done.returncode == 0, done.stderr
    for words in (
        "round 1 of 3: ANN, 2 epochs\n",
        "round 2 of 3: T = 3, 1 epoch\n",
        "round 3 of 3: T = 2, 2 epochs\n",
        "round 1 of 3, epoch 2/2  loss",
        "test accuracy, ANN",
        "(share of active units)",
        "test accuracy, spiking network",
        "(spikes per neuron and step)",
    ):
        assert words in done.stdout
    assert_same_rounds(whole, tmp_path / "run")
    rows = [line.replace("│", "").split() for line in done.stdout.split("\nRounds\n")[1].splitlines() if "│" in line]
    for row, name, T, epochs in zip(rows, INSIDE, ("ANN", "3", "2"), "212", strict=True):
        result = RunFolder(tmp_path / "run" / name).result()
        numbers = (f"{result['validation_accuracy']:.2%}", f"{result['test_accuracy']:.2%}", f"{result['firing_rate']:.3f}")
        assert row[1:] == [T, epochs, *numbers]
    assert RunFolder(tmp_path / "run").config().before == (Round(None, 2, 0.1), Round(3, 1, 0.05))
    first = RunFolder(tmp_path / "run" / "round1-ann").config()
    assert (first.before, first.T, first.neuron, first.optim.lr) == ((), 1, Rectified(), 0.1)
    ann, last = spikerate("eval", "run/round1-ann"), spikerate("eval", "run")
    assert "test accuracy of the ANN" in ann.stdout and "share of active units" in ann.stdout
    assert "spik" not in ann.stdout
    longer = spikerate("eval", "run/round1-ann", "--T", "4")
    assert (longer.returncode, "T is 4, but the network is an ANN" in longer.stderr) == (2, True)
    assert done.stdout.count("spikerate report run") == 1, "after the last round, not after each"
    assert "test accuracy of the spiking network" in last.stdout
    again = spikerate("train", "--resume", "run")
    assert again.returncode == 0
    assert "round 2 of 3: T = 3, 1 epoch, finished" in again.stdout
    assert again.stdout.split("Rounds")[1] == done.stdout.split("Rounds")[1]


def test_a_round_starts_from_the_best_weights_of_the_one_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, Tensor]] = []

    def save(self: RunFolder, state: State) -> None:
        if state.epoch == state.step == 0:
            starts.append({f"network.{name}": value.clone() for name, value in state.network.state_dict().items()})
        real(self, state)

    real = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", save)
    asked: list[int] = []
    monkeypatch.setattr("spikerate.runs.reopen.load", lambda data, T, track: asked.append(T) or load(data, T, track))
    assert main([*TINY, *ROUNDS, "--out", str(tmp_path / "run")]) == 0
    assert asked == [2], "images are read once"
    assert len(starts) == 3
    for start, name in zip(starts[1:], INSIDE, strict=False):
        best, _ = read_tensors(whole / name / "best.safetensors")
        assert start.keys() == best.keys()
        assert all(torch.equal(start[key], best[key]) for key in best)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Have this process asked to end after so many steps, as a user does."""
    real, seen = TrainingView.step, []

    def step(self: TrainingView, step: int, terms: Any) -> None:
        real(self, step, terms)
        seen.append(step)
        if len(seen) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingView, "step", step)


def test_every_step_of_every_round_is_a_place_to_stop(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, statuses = tmp_path / "run", []
    while not statuses or statuses[-1]:
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            statuses.append(main(["train", "--resume", str(run)] if statuses else [*TINY, *ROUNDS, "--out", str(run)]))
        if len(statuses) == 4:  # at the end of the first round
            assert (run / "round1-ann" / "result.json").is_file() and not (run / "round2-T3").exists()
            (run / "round2-T3").mkdir()
            (run / "round2-T3" / ".run.json.tmp").write_text("{")
    assert statuses == [143] * 9 + [0]
    assert f"stopped (SIGTERM), and saved; continue by: spikerate train --resume {run}\n" in capsys.readouterr().out
    assert_same_rounds(whole, run)


def test_a_resume_reaches_all_rounds(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert main([*TINY, *ROUNDS, "--out", str(run)]) == 143
    assert main(["train", "--resume", str(run / "round1-ann"), "--device", "cpu"]) == 0, "a round leads to its run"
    devices = [RunFolder(run / name).config().device for name in INSIDE]
    assert devices == ["auto", "cpu", "auto"]
    assert_same_rounds(whole, run)


def test_all_rounds_are_reproduced(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    assert main(["reproduce", str(whole), "--out", str(again)]) == 0
    assert capsys.readouterr().out.count("every metric of every epoch agrees") == 3
    assert_same_rounds(whole, again)
    result = again / "round1-ann" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"test_accuracy": 2}))
    assert main(["reproduce", str(again), "--out", str(tmp_path / "third")]) == 1
    assert capsys.readouterr().out.count("every metric of every epoch agrees") == 2
    assert main(["reproduce", str(again / "round1-ann")]) == 2
    said = f"spikerate: {again / 'round1-ann'} is one round of a run: give the folder of the run, {again}\n"
    assert capsys.readouterr().err == said


def test_seeds_with_rounds(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*TINY, *ROUNDS, "--seeds", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    done = capsys.readouterr().out
    assert_same_rounds(whole, tmp_path / "seed0")
    (tmp_path / "seed1" / "result.json").unlink()
    (tmp_path / "seed1" / "round2-T3" / "result.json").unlink()
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "round 1 of 3: ANN, 2 epochs, finished" in again
    assert again.split("2 seeds")[1] == done.split("2 seeds")[1]


def test_recordings_are_cut_anew_for_each_round(spikerate: Spikerate, tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    options = ["--data", "mine", "--data.sensor", "34", "34", "--data.size", "32", "--data.cache", "cache", "--width", "2"]
    options += ["--T", "3", "--epochs", "1", "--batch", "2", "--before", "ann:1:0.1", "--out", "run"]
    done = spikerate("train", "events-bptt", *options)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert spikerate("eval", "run/round1-ann").returncode == spikerate("eval", "run").returncode == 0
