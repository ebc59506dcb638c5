"""The process of one cell of a benchmark: it does a training step on request, and reports its time."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikerate.data import LARGEST_SIDE, DataSet, Stored, Units
from spikerate.measure.evaluate import answers
from spikerate.rules import BPTT, RateBP
from spikerate.runs.config import Model, Neuron, Run
from spikerate.runs.kinds import with_kinds
from spikerate.runs.optim import SGD
from spikerate.runs.presets import METHODS, by_method
from spikerate.runs.train import Outputs, build_network, compiler, forward_pass, pick_device
from spikerate.signal import Signal, Tape, Unrolled
from spikerate.system.codec import decode
from spikerate.system.memory import ADVICE, is_out_of_memory
from spikerate.system.ranges import MOST_SAMPLES, check_count

CHECKPOINTED = "bptt-checkpointed"
ANN, INFERENCE, ANN_INFERENCE = "ann", "inference", "ann-inference"
OF_ANN = (ANN, ANN_INFERENCE)
BENCHED = (*METHODS, CHECKPOINTED, INFERENCE, ANN_INFERENCE)
PARTS = ("forward", "backward", "optimizer")
"""The parts of a step, in order."""
MIB = 2**20
_MOST_THREADS = 1024


@dataclass(frozen=True)
class Setting:
    """The settings that all cells of a benchmark share."""

    model: Model = Model()
    side: int = 32
    """height and width of the images, in pixels"""
    classes: int = 10
    """number of classes"""
    batch: int = 32
    """batch size"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: convolutions in bfloat16 by autocast; membrane potentials, statistics and weights stay in float32"""
    compile: bool = False
    """compile the network by torch.compile"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """number of CPU threads; None for PyTorch's default"""

    def __post_init__(self) -> None:
        check_count("side", self.side, "a number of pixels", LARGEST_SIDE)
        check_count("classes", self.classes, "a number of classes", MOST_SAMPLES)
        check_count("batch", self.batch, "a number of images", MOST_SAMPLES)
        if self.threads is not None:
            check_count("threads", self.threads, "a number", _MOST_THREADS)
        self.model.check(self.classes, self.shape, Neuron())

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [C, H, W] of an image."""
        return 3, self.side, self.side


@dataclass(frozen=True)
class Cell:
    """A method at T time steps in a setting.

    Attributes:
        method: one of `BENCHED`, or rate-chunkN; with +NEURON, by neurons of that kind instead of LIF: rate+plif.
    """

    method: str
    T: int
    setting: Setting

    def __str__(self) -> str:
        words = [self.method, *["compiled"][: self.setting.compile], *[f"T = {self.T}"][: self.method not in OF_ANN]]
        return ", ".join(words)

    @property
    def how(self) -> str:
        """Whether the network was asked to be compiled, in words."""
        return "compiled" if self.setting.compile else "as it comes"

    @property
    def ann(self) -> Cell:
        """The cell that this one is compared with."""
        return Cell(ANN_INFERENCE if self.infers else ANN, 1, self.setting)

    @property
    def infers(self) -> bool:
        """Whether it is a forward pass alone."""
        return self.method.partition("+")[0] in (INFERENCE, ANN_INFERENCE)

    @property
    def floor(self) -> float:
        """The lower bound of its time relative to the ANN's.

        A rate-based step has T + 2 passes through the network instead of 3; inference has T instead of one.
        """
        return self.T if self.infers else RateBP().passes(self.T) / 3

    def run(self) -> Run:
        """The settings of a run with the same steps as the cell.

        Raises:
            ValueError: the method is unknown, or a number is out of range.
        """
        name, plus, neuron = self.method.partition("+")
        chunked = re.fullmatch(r"rate-chunk([1-9][0-9]{0,8})", name)
        if (name not in BENCHED and not chunked) or (plus and name in OF_ANN):
            raise ValueError(
                f"there is no method {self.method!r} to bench: give some of {', '.join(BENCHED)}, "
                "rate-chunk2, rate+plif, ..."
            )
        s = self.setting
        run = Run(model=s.model, T=self.T, batch=s.batch, precision=s.precision, compile=s.compile, device=s.device)
        checkpointed = name == CHECKPOINTED
        alike = {CHECKPOINTED: "bptt", INFERENCE: "bptt", ANN_INFERENCE: "ann"}
        method = "rate" if chunked else alike.get(name, name)
        # A tiny learning rate, so that the weights stay and all steps cost the same.
        made = by_method(replace(run, optim=SGD(lr=1e-9)), method)
        if plus:
            made = with_kinds(made, {"--neuron": neuron})
        if chunked:
            return replace(made, rule=RateBP(int(chunked[1])))
        return replace(made, rule=BPTT(checkpoint=True), compile=False) if checkpointed else made


@dataclass(frozen=True, eq=False)
class Step:
    """A training step on one batch, in parts, or the inference of one, which is a forward pass only.

    Attributes:
        loss: the forward pass up to the loss; where this wants no gradient, there is nothing else to do.
        eager: the same without compilation, for counting operations.
        optimizer: the optimiser of the network's parameters.
        device: device of network and batch.
        compiled: whether `loss` is compiled.
        note: a remark about the cell, or empty.
    """

    loss: Callable[[], Tensor]
    eager: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    device: torch.device
    compiled: bool
    note: str = ""


def step_of(cell: Cell) -> Step:
    """The step of any of our cells."""
    return inference(cell) if cell.infers else training_step(cell)


def training_step(cell: Cell) -> Step:
    """The step of `train` without its check for values that are not finite, on random images shown T times."""
    run, setting = cell.run(), cell.setting
    device = pick_device(setting.device)
    torch.manual_seed(0)
    network = build_network(run, setting.classes, setting.shape, device)
    x = torch.randn(setting.batch, *setting.shape, device=device)
    labels = torch.randint(setting.classes, (setting.batch,), device=device)
    rule: Callable[..., Signal] = ordinary if cell.method == "ann" else run.rule
    said: list[str] = []
    ready = compiler(run, device, said.append)(rule)

    def loss(of_rule: Callable[..., Signal]) -> Callable[[], Tensor]:
        outputs, scale = Outputs(network, of_rule, run.loss.per_step), run.optim.scale(run.T)
        return lambda: run.loss(forward_pass(run, outputs, x), labels)["loss"] * scale

    compiled = ready is not rule
    (optimizer,) = run.optim.build(network)
    return Step(loss(ready), loss(rule), optimizer, device, compiled, "" if compiled else " ".join(said))


def inference(cell: Cell) -> Step:
    """What `eval` and the passes over validation images do, of one batch of random images that are shown T times."""
    run, setting = cell.run(), cell.setting
    device = pick_device(setting.device)
    torch.manual_seed(0)
    network = build_network(run, setting.classes, setting.shape, device)
    images = torch.randint(256, (setting.batch, *setting.shape), dtype=torch.uint8)
    samples = Stored(images, torch.randint(setting.classes, (setting.batch,))).to(device)
    classes = tuple(map(str, range(setting.classes)))
    data = DataSet("random", samples, samples, samples, classes, Units((0.5,) * 3, (0.25,) * 3))
    rule: Callable[..., Signal] = ordinary if cell.method == ANN_INFERENCE else BPTT()
    said: list[str] = []
    ready = compiler(run, device, said.append)(rule)

    def answer(by: Callable[..., Signal]) -> Callable[[], Tensor]:
        return lambda: answers(network, data, samples, cell.T, setting.precision, by, setting.batch, device).found

    (optimizer,) = run.optim.build(network)
    compiled = ready is not rule
    return Step(answer(ready), answer(rule), optimizer, device, compiled, "" if compiled else " ".join(said))


def ordinary(network: nn.Module, x: Tensor) -> Signal:
    """An ANN in plain torch, so that the cost of an ordinary network contains no overhead of a rule."""
    return Unrolled(network(x[0]).unsqueeze(0), False, 1, Tape(1))


# What is measured -----------------------------------------------------------------------------------------------------


def timed(step: Step) -> dict[str, float]:
    """Do a step; returns the seconds of its parts."""
    marks = [_mark(step.device)]
    loss = step.loss()
    marks.append(_mark(step.device))
    if loss.requires_grad:
        loss.backward()
    marks.append(_mark(step.device))
    if loss.requires_grad:
        step.optimizer.step()
        step.optimizer.zero_grad()
    marks.append(_mark(step.device))
    if step.device.type == "cpu":
        seconds = [end - start for start, end in pairwise(marks)]
    else:
        marks[-1].synchronize()
        seconds = [start.elapsed_time(end) / 1000 for start, end in pairwise(marks)]
    return dict(zip(PARTS, seconds, strict=True))


def _mark(device: torch.device) -> Any:
    """A time stamp; on a GPU an event in its queue, since synchronising after each part would leave the GPU idle."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def counted(step: Step) -> dict[str, float]:
    """The operations of a step, and the MiB that its forward pass saves for the backward pass, without the parameters.

    Counted are floating-point operations of convolutions and matrix products. A tensor's memory counts once, however often
    it is saved. The step is not compiled.
    """
    parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
    own = {p.untyped_storage().data_ptr() for p in parameters}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = step.eager()
        if loss.requires_grad:
            loss.backward()
    step.optimizer.zero_grad()
    return {
        "flops": counter.get_total_flops(),
        "saved_mib": sum(size for place, size in saved.items() if place not in own) / MIB,
    }


@dataclass(frozen=True)
class Memory:
    """The peak memory from a moment between two steps on.

    On a GPU it is that of all tensors. On a CPU it is the increase of the resident set over that of the idle process, which
    includes libraries, network and compiler, but not the optimiser's state. It can be measured on Linux with glibc only,
    and not in every container.
    """

    device: torch.device
    rest: int | None

    @classmethod
    def from_now_on(cls, step: Step) -> Memory:
        if step.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return cls(step.device, 0)
        if platform.libc_ver()[0] != "glibc":
            return cls(step.device, None)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # freed memory would count as resident
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            return cls(step.device, None)
        states = [value for state in step.optimizer.state.values() for value in state.values()]
        return cls(step.device, _resident("VmRSS") - sum(v.nbytes for v in states if isinstance(v, Tensor)))

    def peak(self) -> dict[str, float | None]:
        """The peak in MiB; None if it can't be measured."""
        if self.device.type == "cuda":
            peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            return {"peak_mib": peaks[0] / MIB, "reserved_mib": peaks[1] / MIB}
        return {"peak_mib": None if self.rest is None else (_resident("VmHWM") - self.rest) / MIB, "reserved_mib": None}


def _resident(entry: str) -> int:
    """The resident set in bytes: VmRSS now, VmHWM at its peak."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024


# How it talks ---------------------------------------------------------------------------------------------------------


def serve(build: Callable[[Cell], Step]) -> None:
    """Run as a cell: read requests from the lines of standard input, and answer with lines of JSON on standard output.

    The first request is the `Cell` as JSON: it is built and warmed up. "step" does a step, and returns the seconds of its
    parts. "count", the last one, returns the peak memory over all these steps, and the operations and saved bytes of one.
    If the cell fails, the answer is the reason in one sentence.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not be taken for an answer
    try:
        for answer in _answers(build, sys.stdin):
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        print(json.dumps({"died": _in_words(error)}), file=answers, flush=True)
        sys.exit(1)


def _answers(build: Callable[[Cell], Step], lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    cell = decode(Cell, json.loads(next(lines)), "cell")
    if cell.setting.threads:
        torch.set_num_threads(cell.setting.threads)
    step = build(cell)
    gpu = step.device.type == "cuda"
    if gpu:
        torch.cuda.set_device(step.device.index or 0)
    start = time.perf_counter()
    timed(step)
    first = time.perf_counter() - start
    timed(step)
    memory = Memory.from_now_on(step)
    yield {"first": first, "compiled": step.compiled, "note": step.note}
    for line in lines:
        if line.strip() == "count":
            yield memory.peak() | counted(step)
            continue
        if gpu:
            timed(step)  # not measured: it allocates memory again, which was released after the previous turn
        yield timed(step)
        if gpu:
            torch.cuda.empty_cache()


def _in_words(error: Exception) -> str:
    if is_out_of_memory(error):
        return ADVICE
    sentence = str(error).split("\n")[0]
    return sentence if isinstance(error, ValueError) else f"{type(error).__name__}: {sentence}"
