"""A training step by backpropagation through time of spikerate's networks with the neurons of another library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate.bench.worker import Cell, Step
from spikerate.runs.optim import SGD
from spikerate.runs.train import pick_device, place


class OverTime(nn.Module):
    """Neurons for [T, B, ...] between layers of torch that see T B samples.

    The first neurons get the image [B, ...], at every step: the layers before them run once.
    """

    def __init__(self, T: int, batch: int, neurons: nn.Module) -> None:
        super().__init__()
        self.T = T
        self.batch = batch
        self.neurons = neurons

    def forward(self, x: Tensor) -> Tensor:
        steps = x.expand(self.T, *x.shape) if len(x) == self.batch else x.unflatten(0, (self.T, self.batch))
        return self.neurons(steps).flatten(0, 1)


@dataclass(frozen=True)
class _Neurons:
    """In the place of `spikerate.runs.config.Neuron`."""

    T: int
    batch: int
    make: Callable[[], nn.Module]

    def build(self) -> OverTime:
        return OverTime(self.T, self.batch, self.make())


def bptt_step(
    cell: Cell,
    library: str,
    neurons: Callable[[], nn.Module],
    reset: Callable[[nn.Module], None] = lambda network: None,
    prepare: Callable[[nn.Module, Tensor], nn.Module] = lambda network, x: network,
) -> Step:
    """The step of a cell with such neurons: weights, images, layout, precision and optimiser are those of spikerate's cells.

    Args:
        cell: method and setting.
        library: whose version is noted.
        neurons: makes a layer [T, B, ...] -> [T, B, ...].
        reset: clears the state of all layers, before each step; by default they have none.
        prepare: the network that is trained, from the network and the images [B, C, H, W].
    """
    of = cell.setting
    device = pick_device(of.device)
    torch.manual_seed(0)
    built = place(of.model.build(of.classes, of.shape, _Neurons(cell.T, of.batch, neurons)), device)
    x = torch.randn(of.batch, *of.shape, device=device)
    labels = torch.randint(of.classes, (of.batch,), device=device)
    network = prepare(built, x)

    def loss(forward: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            reset(network)
            with torch.autocast(device.type, torch.bfloat16, enabled=of.precision == "bf16"):
                logits = forward(x)
            return F.cross_entropy(logits.unflatten(0, (cell.T, of.batch)).mean(0).float(), labels)

        return run

    ready = torch.compile(network, dynamic=False) if of.compile else network
    note = f"{library} {version(library)}, torch {torch.__version__}"
    (optimizer,) = SGD(lr=1e-9).build(network)
    return Step(loss(ready), loss(network), optimizer, device, of.compile, note)
