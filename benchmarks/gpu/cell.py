"""A training step of one method in a process of its own, timed when it is told to: a cell of the bench.

Its questions: first the cell itself, which is built and warmed up; then the number of steps to time.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from bench import Cell
from talk import answer_all
from torch import Tensor, nn

from spikerate import BPTT, Branched, RateBP, SelfDistillation, deepconv_branches, resnet18, sew_resnet18

NETWORKS = {"resnet18": resnet18, "sew_resnet18": sew_resnet18}
MIB = 2**20


class OverTime(nn.Module):
    """Neurons for [T, B, ...] between layers of torch that see T B samples; those before the first neurons run once."""

    def __init__(self, T: int, batch: int, neurons: nn.Module) -> None:
        super().__init__()
        self.T, self.batch, self.neurons = T, batch, neurons

    def forward(self, x: Tensor) -> Tensor:
        steps = x.expand(self.T, *x.shape) if len(x) == self.batch else x.unflatten(0, (self.T, self.batch))
        return self.neurons(steps).flatten(0, 1)


class SnnTorch(nn.Module):
    """snnTorch's leaky neurons over time."""

    def __init__(self) -> None:
        super().__init__()
        import snntorch
        from snntorch import surrogate

        self.leaky = snntorch.Leaky(beta=0.2, spike_grad=surrogate.sigmoid(slope=4))

    def forward(self, steps: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(steps[0]), []
        for current in steps:
            spike, membrane = self.leaky(current, membrane)
            spikes.append(spike)
        return torch.cat(spikes).unflatten(0, (len(spikes), -1))


def spikingjelly_neurons() -> nn.Module:
    """The neuron that spikerate has by default: decay 0.2, soft reset, detached."""
    from spikingjelly.activation_based import neuron, surrogate

    sigmoid = surrogate.Sigmoid(alpha=4.0)
    return neuron.LIFNode(1.25, False, 1.0, None, surrogate_function=sigmoid, detach_reset=True, step_mode="m")


def in_triton(network: nn.Module, device: torch.device) -> str:
    """Have SpikingJelly's neurons run in Triton under autocast, too; how many they are."""
    from spikingjelly.activation_based.precision import PrecisionConfig, prepare_model_for_precision

    ready = prepare_model_for_precision(network, device, PrecisionConfig("bf16", neuron_storage="fp32"))
    assert ready.model is network and ready.triton_report is not None
    return f"{len(ready.triton_report['converted_modules'])} neurons in Triton"


def compiled(cell: Cell, f: Any) -> Any:
    """As the mode says."""
    if cell.mode == "eager":
        return f
    return torch.compile(f, dynamic=False, mode="reduce-overhead" if cell.mode == "graphs" else None)


def forward_and_loss(cell: Cell) -> tuple[nn.Module, Callable[[], Tensor], str]:
    """The network on its device, what makes the loss of a batch, and what there is to say of it."""
    device = torch.device(cell.device)
    peers = {"spikingjelly": spikingjelly_neurons, "spikingjelly-plain": spikingjelly_neurons, "snntorch": SnnTorch}
    neurons = peers.get(cell.method)
    build = NETWORKS[cell.network]
    torch.manual_seed(0)
    if cell.method == "ann":
        network = build(cell.classes, 3, cell.width, "relu", stem=cell.stem)
    elif neurons:
        network = build(cell.classes, 3, cell.width, lambda: OverTime(cell.T, cell.batch, neurons()), stem=cell.stem)
    else:
        network = build(cell.classes, 3, cell.width, stem=cell.stem)
    shape = (3, cell.side, cell.side)
    network = Branched(network, deepconv_branches(network, shape, cell.classes)) if cell.method == "esd" else network
    network = network.to(device).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    x = torch.randn(cell.batch, *shape).to(device)
    y = torch.randint(cell.classes, (cell.batch,)).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=cell.precision == "bf16")
    if cell.method == "ann" or neurons:
        reset: Callable[[], None] = lambda: None  # noqa: E731
        note = ""
        if neurons is spikingjelly_neurons:
            from spikingjelly.activation_based import functional

            reset = lambda: functional.reset_net(network)  # noqa: E731
            if cell.method == "spikingjelly" and device.type == "cuda":
                note = in_triton(network, device)
        run = compiled(cell, network)

        def of_peer() -> Tensor:
            reset()
            with autocast:
                logits = run(x)
            if neurons:
                logits = logits.unflatten(0, (cell.T, cell.batch)).mean(0)
            return F.cross_entropy(logits.float(), y)

        return network, of_peer, note
    rule = compiled(cell, BPTT() if cell.method == "bptt" else RateBP())

    def ours() -> Tensor:
        with autocast:
            out = rule(network, x.expand(cell.T, *x.shape))
        if cell.method == "esd":
            return SelfDistillation()([*out.exits, out.rate], y)["loss"]
        return F.cross_entropy(out.rate.float(), y)

    return network, ours, ""


def answers(questions: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """Of a cell."""
    cell = Cell(**next(questions))
    gpu = cell.device.startswith("cuda")
    network, loss_of, note = forward_and_loss(cell)
    # The weights stay where they are, so that all steps cost the same.
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-9, momentum=0.9, weight_decay=5e-4)

    def step() -> Tensor:
        if cell.mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def finished() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    start = finished()
    loss = float(step())
    first = finished() - start
    for _ in range(4 if cell.mode == "graphs" else 2):
        step()
    give_back(gpu)
    yield {"first_s": first, "loss": loss, "note": note, "torch": torch.__version__}
    for n in questions:
        for _ in range(2):
            step()
        finished()
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
            marks[0].record()
            for mark in marks[1:]:
                step()
                mark.record()
            finished()
            times = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
            peaks = torch.cuda.max_memory_allocated() / MIB, torch.cuda.max_memory_reserved() / MIB
        else:
            times, peaks = [], (0.0, 0.0)
            for _ in range(n):
                start = finished()
                step()
                times.append(1000 * (finished() - start))
        give_back(gpu)
        if cell.mode == "graphs":
            note = f"{torch._dynamo.utils.counters['inductor']['cudagraph_skips']} graphs skipped"
        yield {
            "note": note,
            "ms": times,
            "median_ms": statistics.median(times),
            "peak_mib": peaks[0],
            "reserved_mib": peaks[1],
        }


def give_back(gpu: bool) -> None:
    """So that all cells find room on the card."""
    gc.collect()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    answer_all(answers)
