"""The bench: what it counts, whose turn it is, what it writes, and what is left when a cell dies."""

from __future__ import annotations

import functools
import importlib
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch

from spikerate import BPTT, LIF, CrossEntropy, RateBP, SelfDistillation, macs
from spikerate.bench.compare import Outcome, both_ways, cells, first_uses, measure, peer_cells
from spikerate.bench.worker import (
    ANN_INFERENCE,
    CHECKPOINTED,
    INFERENCE,
    MIB,
    Cell,
    Memory,
    Setting,
    Step,
    counted,
    step_of,
    timed,
    training_step,
)
from spikerate.cli.main import main
from spikerate.cli.plots import draw_bench
from spikerate.measure.evaluate import answers
from spikerate.models import Staged
from spikerate.runs.config import IntegerNeuron, LearningNeuron, Model, Rectified
from spikerate.system.codec import decode, encode
from support import ROOT
from support.processes import Processes, wait_for

Spikerate = Callable[..., CompletedProcess[str]]
TINY = Setting(model=Model(width=2), side=8, batch=4, device="cpu")
FAKE = """
import json, os, signal, sys
cell = json.loads(sys.stdin.readline())
print("not an error", file=sys.stderr)
def answer(word, **what):
    with open("log", "a") as log:
        log.write(f"{word} {cell['T']}\\n")
    print(json.dumps(what), flush=True)
answer("start", first=2.0, compiled=True, note="")
for n, line in enumerate(sys.stdin):
    if line == "count\\n":
        answer("count", peak_mib=3.0, reserved_mib=None, saved_mib=1.0, flops=1000)
        continue
    DIES
    answer("step", forward=1e-3 * (n + cell["T"]), backward=2e-3, optimizer=0.0)
"""


def fake_cells(folder: Path, dies: dict[int, str], ann: bool = True) -> dict[Cell, tuple[str, ...]]:
    """T -> how it dies; the one of T = 1 is an ANN."""
    commands = {}
    for T, how in dies.items():
        script = folder / f"fake{T}.py"
        script.write_text(FAKE.replace("DIES", how or "pass"))
        commands[Cell("ann" if ann and T == 1 else "fake", T, TINY)] = (sys.executable, str(script))
    return commands


def body(cell: Cell) -> Staged:
    network = cell.run().model.build(10, cell.setting.shape, cell.run().neuron)
    assert isinstance(network, Staged)
    return network


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize("method", ["ann", "rate", "rate-s", "bptt", CHECKPOINTED])
def test_operations_are_those_counted_by_hand(method: str, T: int) -> None:
    cell = Cell(method, T, TINY)
    found = macs(body(cell), TINY.shape)
    stem, head = found.pop("stem"), found.pop("head")
    stages = sum(found.values())
    by_hand = {
        "ann": 3 * (stages + head),
        "rate": (T + 2) * (stages + head),
        "rate-s": (T + 2 + (T > 1)) * (stages + head),  # in chunks, the layers run once more, on the rate
        "bptt": 3 * T * (stages + head),
        CHECKPOINTED: 4 * T * stages + 3 * T * head,
    }
    # The image is the same at each step, and wants no gradient: the first layer runs forward once, and once for its weight.
    operations = 2 * TINY.batch * (2 * stem + by_hand[method])
    assert counted(training_step(cell))["flops"] == operations


def test_what_is_saved_for_the_backward_pass() -> None:
    def saved(method: str, T: int) -> float:
        return counted(training_step(Cell(method, T, replace(TINY, side=16))))["saved_mib"]

    assert saved("rate", 1) == saved("rate", 2) == saved("rate", 4)
    assert saved("esd", 2) == saved("esd", 4) > saved("rate", 4)
    assert saved("bptt", 1) < saved("bptt", 2) < saved("bptt", 4)
    assert saved(CHECKPOINTED, 4) < 0.1 * saved("bptt", 4)


def test_each_memory_is_counted_once_and_no_parameter() -> None:
    weight, x = torch.nn.Parameter(torch.ones(64, 64)), torch.ones(64, 64)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def loss() -> torch.Tensor:
        y = weight * x  # saves both
        return (y * y[0]).sum() + (x * weight).sum()  # saves y, twice, and both again

    found = counted(Step(loss, loss, optimizer, torch.device("cpu"), compiled=False))
    assert found == {"flops": 0, "saved_mib": 2 * 64 * 64 * 4 / MIB}


def test_a_cell_is_a_run_by_its_method() -> None:
    assert Cell("rate-s", 2, TINY).run().rule == RateBP(chunk=1)
    assert Cell("rate-chunk3", 6, TINY).run().rule == RateBP(chunk=3)
    assert isinstance(Cell("esd", 2, TINY).run().loss, SelfDistillation)
    assert Cell(CHECKPOINTED, 2, TINY).run().loss == CrossEntropy()
    assert Cell(CHECKPOINTED, 2, replace(TINY, compile=True)).run().rule == BPTT(checkpoint=True)
    ann = Cell("ann", 1, replace(TINY, precision="bf16", compile=True))
    assert ann.run().neuron == Rectified()
    assert ann.run().precision == "bf16" and ann.run().compile
    assert decode(Cell, json.loads(json.dumps(encode(ann)))) == ann
    assert list(cells(["rate", "ann", "rate"], [1, 2], TINY)) == [
        Cell("rate", 1, TINY),
        Cell("rate", 2, TINY),
        Cell("ann", 1, TINY),
    ]


def test_a_method_has_the_neurons_that_are_named_after_it() -> None:
    setting = Setting(model=Model(width=4), side=8, batch=2)
    kinds = {"rate+plif": LearningNeuron, "inference+ilif": IntegerNeuron, "rate-chunk1+ilif": IntegerNeuron}
    for method, kind in kinds.items():
        cell = Cell(method, 2, setting)
        assert isinstance(cell.run().neuron, kind)
        assert cell.ann.method == ("ann-inference" if cell.infers else "ann")
        step = step_of(cell)
        assert bool(step.loss().isfinite().all())
    for method in ("ann+plif", "rate+unknown", "+plif"):
        with pytest.raises(ValueError, match=r"no method '(ann)?\+plif' to bench|unknown"):
            Cell(method, 2, setting).run()


def test_as_it_comes_and_compiled_are_cells_of_their_own() -> None:
    ways = both_ways(TINY)
    found = list(cells(["ann", "rate", CHECKPOINTED], [2], *ways))
    assert [str(cell) for cell in found] == [
        "ann",
        "rate, T = 2",
        "bptt-checkpointed, T = 2",
        "ann, compiled",
        "rate, compiled, T = 2",
    ]
    assert [found.index(cell.ann) for cell in found] == [0, 0, 0, 3, 3]
    assert Cell(INFERENCE, 4, ways[1]).ann == Cell(ANN_INFERENCE, 1, ways[1])
    assert Cell(INFERENCE, 4, TINY).floor == 4 and Cell(ANN_INFERENCE, 1, TINY).floor == 1


@pytest.mark.parametrize(("method", "T"), [(ANN_INFERENCE, 1), (INFERENCE, 1), (INFERENCE, 3)])
def test_inference_is_what_eval_does(method: str, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    def watched(*arguments: Any) -> Any:
        called.append(arguments)
        return answers(*arguments)

    monkeypatch.setattr("spikerate.bench.worker.answers", watched)
    cell = Cell(method, T, replace(TINY, side=16))
    found = macs(body(cell), cell.setting.shape)
    step = step_of(cell)
    by_hand = found.pop("stem") + T * sum(found.values())
    assert counted(step) == {"flops": 2 * cell.setting.batch * by_hand, "saved_mib": 0}
    network, _, samples, steps = called[0][:4]
    assert steps == T and len(samples) == cell.setting.batch and network.training
    assert timed(step)["forward"] > 0 and not step.loss().requires_grad
    assert step.loss().shape == (cell.setting.batch, T)


def test_the_first_use_has_a_cache_of_its_own_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "first.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "cell, cache = json.loads(sys.stdin.readline()), pathlib.Path(os.environ['TORCHINDUCTOR_CACHE_DIR'])\n"
        "first = 2.0 if any(cache.iterdir()) else 9.0\n"
        "(cache / 'kernel').touch()\n"
        "if cell['T'] == 4: sys.exit('no')\n"
        "print(json.dumps({'first': first, 'compiled': False, 'note': ''}), flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = (sys.executable, str(script))
    uses = first_uses({Cell("rate", T, TINY): command for T in (2, 1, 4)}, lambda line: None)
    assert [(use.empty, use.warm) for use in uses] == [(9, 2), (9, 2), (None, None)]
    record = uses[0].record()
    assert record == {"method": "rate", "T": 2, "asked": "as it comes", "empty_seconds": 9.0, "warm_seconds": 2.0}


def test_a_step_leaves_nothing_behind() -> None:
    step = training_step(Cell("rate", 2, TINY))
    parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    seconds = timed(step)
    assert list(seconds) == ["forward", "backward", "optimizer"]
    assert all(s > 0 for s in seconds.values())
    assert all(p.grad is None for p in parameters)
    for p, q in zip(parameters, before, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident set")
def test_the_peak_of_memory_is_that_over_the_process_at_rest() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    step = Step(weight.sum, weight.sum, torch.optim.SGD([weight], lr=0.1), torch.device("cpu"), compiled=False)
    torch.ones(40 * MIB)  # before, and gone
    memory = Memory.from_now_on(step)
    torch.ones(10 * MIB)
    peak = memory.peak()["peak_mib"]
    assert peak is None or 38 < peak < 60  # in float32


def test_the_cells_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    outcomes = measure(fake_cells(tmp_path, {1: "", 2: "", 4: ""}), 3, said.append)
    order = Path("log").read_text().split("\n")[:-1]
    assert order == [f"{word} {T}" for word in ("start", "step", "step", "step", "count") for T in (1, 2, 4)]
    assert said[1] == "fake, T = 2: first step after 2.0 s, compiled"
    ann, _, last = (outcome.cost for outcome in outcomes)
    assert ann and last
    assert ann.to_ann == ann.to_floor == 1
    assert [round(1000 * sum(time.values()), 6) for time in last.times] == [6, 7, 8]
    assert last.to_ann == pytest.approx(7 / 4)  # of 6/3, 7/4 and 8/5
    assert last.to_floor == pytest.approx(7 / 8)
    assert last.images_per_second == pytest.approx(4 / 7e-3)
    assert last.compile_seconds == pytest.approx(2 - 7e-3)
    record = outcomes[2].record()
    assert record["times_ms"]["forward"] == [4, 5, 6]
    assert record["step_ms"] == {"median": 7, "min": 6, "max": 8}
    alone = measure(fake_cells(tmp_path, {2: ""}), 1, said.append)[0].cost
    assert alone and alone.to_ann is None and alone.to_floor is None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("if n == 1: sys.exit('Error: it is\\nall over')", "all over"),
        ("if n == 1: os.close(2), os._exit(3)", "not an error"),
        ("if n == 1: os.kill(os.getpid(), signal.SIGKILL)", "it was ended by SIGKILL, perhaps for lack of memory"),
        ("if n == 1: print('[1, 2]', flush=True)", "it wrote '[1, 2]', which is not an answer"),
        ("if n == 1: answer('died', died='there is not enough memory')", "there is not enough memory"),
    ],
)
def test_a_cell_that_dies_leaves_the_others_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ann, dead, other = measure(fake_cells(tmp_path, {1: "", 2: how, 4: ""}), 3, lambda line: None)
    assert ann.cost and other.cost
    assert len(other.cost.times) == 3
    assert dead == Outcome(Cell("fake", 2, TINY), None, words)
    assert dead.record() == {"method": "fake", "T": 2, "asked": "as it comes", "floor": 4 / 3, "died": words}
    draw_bench([ann, dead, other], tmp_path / "bench.svg")
    assert "fake" in (tmp_path / "bench.svg").read_text()


def test_without_an_ann_there_are_no_ratios_and_nothing_to_draw_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ann, other = measure(fake_cells(tmp_path, {1: "sys.exit(5)", 2: ""}), 2, lambda line: None)
    assert not ann.cost
    assert other.cost and other.cost.to_ann is None
    draw_bench([ann], tmp_path / "bench.svg")
    assert (tmp_path / "bench.svg").is_file()


def test_the_command(spikerate: Spikerate, tmp_path: Path) -> None:
    options = ["--width", "2", "--side", "8", "--batch", "4", "--device", "cpu", "--threads", "1", "--steps", "2"]
    options += ["--first-use", "rate"]
    done = spikerate("bench", "--methods", "ann", "rate", "--T", "2", *options, "--model", "resnet20")
    assert done.returncode == 0, done.stderr
    for words in (
        "rate, T = 2: first step after",
        "/ floor",
        "saved",
        "as it comes",
        "First use",
        "numbers are in runs/bench-",
    ):
        assert words in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["bench.json", "bench.svg"]
    record = json.loads((folder / "bench.json").read_text())
    assert record["command"].startswith("spikerate bench --methods ann rate --T 2")
    assert record["setting"]["model"]["name"] == "resnet20"
    assert record["environment"]["threads"] == 1
    ann, rate = record["cells"]
    assert (ann["method"], rate["method"], rate["T"]) == ("ann", "rate", 2)
    (use,) = record["first_use"]
    assert use["method"] == "rate" and use["empty_seconds"] > 0 and use["warm_seconds"] > 0
    assert ann["to_ann"] == 1 and rate["to_ann"] > 0
    assert all(len(rate["times_ms"][part]) == 2 for part in ("forward", "backward", "optimizer"))
    assert rate["flops"] > ann["flops"] and rate["saved_mib"] > ann["saved_mib"] > 0
    picture = (folder / "bench.svg").read_text()
    for words in ("rate", "ANN", "training step or inference, ms", "peak memory, MiB"):
        assert words in picture


def test_a_bench_that_is_ended_ends_its_cells(processes: Processes, tmp_path: Path) -> None:
    script, begun = tmp_path / "slow_cell.py", tmp_path / "pid"
    script.write_text(
        f"import os, pathlib, time\npathlib.Path({str(begun)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    )
    arguments = ["bench", "--methods", "--peers", sys.executable, str(script), "--side", "8", "--T", "1", "--out", "bench"]
    when = functools.partial(wait_for, begun)
    done = processes.run(*arguments, cwd=tmp_path, kill=signal.SIGTERM, when=when)
    assert (done.returncode, done.stderr) == (143, "spikerate: ended by SIGTERM\n")
    assert not Path(f"/proc/{begun.read_text()}").exists()
    assert not (tmp_path / "bench").exists()


def said_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr("spikerate.cli.main._dispatch", fail)
    return main([])


def error_of(work: Callable[[], object]) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        work()
    return caught.value


def test_only_a_lack_of_memory_is_called_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for lack in (
        error_of(lambda: torch.empty(2**60)),
        error_of(lambda: bytearray(2**62)),
        error_of(lambda: np.empty(2**57)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        assert said_of(lack, monkeypatch) == 1
        assert capsys.readouterr().err.startswith("spikerate: there is not enough memory: a smaller --batch")
    for fault in (
        "CUDA error: an illegal memory access was encountered",
        "required rank 4 tensor to use channels_last memory format",
        error_of(lambda: torch.zeros(2).view(3)),
    ):
        with pytest.raises(RuntimeError):
            said_of(RuntimeError(str(fault)), monkeypatch)


def test_the_command_when_a_cell_has_too_little_memory(spikerate: Spikerate, tmp_path: Path) -> None:
    fake_cells(tmp_path, {2: ""})
    done = spikerate(
        *("bench", "--methods", "ann", "--T", "2", "--width", "2", "--side", "4096", "--batch", "1000000", "--out", "here"),
        *("--device", "cpu", "--peers", sys.executable, "fake2.py", "--steps", "1"),
    )
    assert done.returncode == 1
    assert done.stderr == "spikerate: ann died: there is not enough memory: a smaller --batch, --width or --T takes less\n"
    ann, peer = json.loads((tmp_path / "here" / "bench.json").read_text())["cells"]
    assert ann["died"] and "step_ms" not in ann
    assert peer["method"] == "fake2" and peer["step_ms"]["median"] == 4
    rows = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert rows.count("ann as it comes 1") == 3, "the row of what died is empty"
    assert any(row.startswith("fake2 as it comes 2 4.0 4.0 4.0 - -") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "ann", "slow"], "there is no method 'slow' to bench: give some of esd, rate"),
        (["--methods"], "bench got no methods or no T"),
        (["--T"], "bench got no methods or no T"),
        (["--T", "2", "0"], "T is 0"),
        (["--batch", "1"], "batch is 1"),
        (["--side", "0"], "side is 0"),
        (["--threads", "0"], "threads is 0"),
        (["--steps", "0"], "steps is 0"),
        (["--width", "0"], "model.width is 0"),
        (["--model", "resnet21"], "resnet18"),
        (["--model", "vggsnn", "--side", "24"], "needs a side of 16"),
        (["--precision", "fp8"], "fp8"),
        (["--device", "cuda:77"], "device is 'cuda:77'"),
        (["--out", "occupied"], "is not empty: choose another"),
        (["--peers", "python", "gone.py"], "gone.py does not exist"),
    ],
)
def test_bad_input_is_one_sentence(spikerate: Spikerate, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("x")
    done = spikerate("bench", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("spikerate: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


def test_a_peers_step_is_that_of_bptt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "peers")
    bptt_step = importlib.import_module("peer").bptt_step

    class Ours(torch.nn.Module):
        def forward(self, steps: torch.Tensor) -> torch.Tensor:
            return LIF().unroll(steps, None)[0]

    for T in (1, 3):
        ours, peer = training_step(Cell("bptt", T, TINY)), bptt_step(Cell("other", T, TINY), "torch", Ours)
        assert torch.equal(peer.loss(), ours.loss())
        assert peer.note.startswith("torch 2")
        assert counted(peer)["flops"] == counted(ours)["flops"]


def test_the_memory_saving_peer_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "peers")
    of = replace(TINY, side=16, precision="bf16", compile=True)
    plain = importlib.import_module("spikingjelly_cell").step(Cell("plain", 2, replace(of, compile=False)))
    saving = importlib.import_module("spikingjelly_memopt_cell").step(Cell("memopt", 2, of))
    assert not saving.compiled and "memopt" in saving.note
    found = []
    for peer in (plain, saving):
        peer.loss().backward()
        found.append([p.grad for group in peer.optimizer.param_groups for p in group["params"]])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert counted(saving)["flops"] > counted(plain)["flops"], "it runs layers again"


def test_a_peer_wants_a_python_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "other_cell.py").touch()
    assert [cell.method for cell in peer_cells([(sys.executable, tmp_path / "other_cell.py")], [1], TINY)] == ["other"]
    with pytest.raises(ValueError, match="nothing3 is no program"):
        peer_cells([("nothing3", tmp_path / "other_cell.py")], [1], TINY)
