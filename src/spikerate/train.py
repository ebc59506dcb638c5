"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spikerate.card import compiler_problem
from spikerate.config import Run
from spikerate.data import ImageSet, epoch_batches, steps_per_epoch, stream
from spikerate.evaluate import accuracy
from spikerate.losses import Terms, accuracies
from spikerate.record import RunFolder
from spikerate.rules import BPTT, Rule

Row = dict[str, Any]


class Watch(Protocol):
    """Who looks on while a network is trained."""

    def say(self, line: str) -> None:
        """Something worth knowing."""

    def step(self, step: int, terms: Terms) -> None:
        """So many steps of the run are done; `terms` are scalars on the device: reading one waits for it."""

    def epoch(self, row: Row) -> None:
        """An epoch is done; `row` is its line in `metrics.jsonl`."""


@dataclass(frozen=True)
class Trained:
    """What came of a run: the network with its last weights, and each epoch's row."""

    network: nn.Module
    rows: list[Row]

    @property
    def best(self) -> Row:
        """The row of the epoch whose weights are `best`: the first with the highest held-out accuracy, or the last."""
        return max(self.rows, key=lambda row: (row.get("held_out", 0.0), 0 if "held_out" in row else row["epoch"]))


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one.

    Raises:
        ValueError: the name is no device, or there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which is not to be had here: give auto, cpu or cuda") from error
    return device


def build_network(run: Run, data: ImageSet, device: torch.device) -> nn.Module:
    """The network of a run with fresh weights, on the device, its kernels in channels-last order."""
    network = run.build(len(data.classes), data.shape).to(device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def train(run: Run, data: ImageSet, folder: RunFolder, watch: Watch) -> Trained:
    """Train a network, and keep each epoch's row and the best and last weights in the folder.

    The best epoch is chosen on the held-out images; the test images are not touched.
    """
    device = pick_device(run.device)
    data = data.to(device)
    torch.manual_seed(run.seed)
    network = build_network(run, data, device)
    optimizer = run.optim.build(network)
    prepare = _compiler(run, device, watch)
    forward, look = prepare(run.rule), prepare(BPTT())
    steps = steps_per_epoch(data.train, run.batch)
    rows: list[Row] = []
    done = 0
    for epoch in range(run.epochs):
        start = time.perf_counter()
        torch.manual_seed(stream(run.seed, epoch))
        totals: Terms = {}
        for x, y in epoch_batches(data, run.batch, run.data.augment, run.seed, epoch):
            for group in optimizer.param_groups:
                group["lr"] = run.optim.lr_at(done / (run.epochs * steps))
            terms = _step(run, network, forward, optimizer, x, y)
            totals = {name: totals.get(name, 0) + value for name, value in terms.items()}
            done += 1
            watch.step(done, terms)
        row: Row = {"epoch": epoch + 1, "lr": run.optim.lr_at((done - steps) / (run.epochs * steps))}
        row |= {name: float(value) / steps for name, value in totals.items()}
        if len(data.held_out):
            row["held_out"] = accuracy(network, data, data.held_out, run.T, run.precision, look).value
        row["seconds"] = round(time.perf_counter() - start, 3)
        rows.append(row)
        folder.log(row)
        folder.save_weights("last", network)
        if Trained(network, rows).best is row:
            folder.save_weights("best", network)
        watch.epoch(row)
    return Trained(network, rows)


def _compiler(run: Run, device: torch.device, watch: Watch) -> Callable[[Rule], Callable[..., Any]]:
    """What makes a rule ready to run: `torch.compile` where the run asks for it and it works here."""

    def eager(rule: Rule) -> Callable[..., Any]:
        return rule

    def compiled(rule: Rule) -> Callable[..., Any]:
        return torch.compile(rule, fullgraph=True, dynamic=False)

    if not run.compile:
        return eager
    problem = compiler_problem(device)
    if problem:
        watch.say(f"not compiled, since {problem}: the steps take longer, the result is the same")
        return eager
    watch.say("compiling the network at the first step, which takes a minute or two")
    return compiled


def _step(
    run: Run, network: nn.Module, forward: Callable[..., Any], optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> Terms:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
        out = forward(network, x.expand(run.T, *x.shape))
    outputs = [*out.exits, out.rate]
    terms = run.loss(outputs, y)
    (terms["loss"] * run.optim.scale(run.T)).backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        return {name: term.detach() for name, term in (terms | accuracies(outputs, y)).items()}
