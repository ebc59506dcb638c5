"""Examples: a few test samples with the network's logits at each time step and the spikes of some neurons."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikerate.data import Block, DataSet
from spikerate.measure.evaluate import over_time
from spikerate.measure.meter import Meter, Trains
from spikerate.runs.config import Run
from spikerate.runs.record import RunFolder
from spikerate.system.files import is_there, pack_tensors, read_tensors, write_whole
from spikerate.system.modes import autocast, mode

_SIDE = 96
"""Largest side of a picture; larger ones are reduced."""
_UNITS, _FEWEST = 128, 6
"""Number of neurons whose spikes are kept: in all layers together, and at least in each layer."""
_EVENTS = ((0.90, 0.62, 0.0), (0.34, 0.71, 0.91))
"""Colours of off and on events."""


@dataclass(frozen=True, eq=False)
class Examples:
    """N samples of a test set, with the response of a network with L layers of neurons in T steps.

    Attributes:
        index: [N] int64, indices in the test set.
        labels: [N] int64, the true classes.
        logits: [N, T, K] float32, at each step.
        pictures: [N, 3, H, W] uint8, red, green and blue; for recordings the events of all frames.
        spikes: [N, L, U, T] uint8, spikes of U neurons, spread evenly over each layer.
        rates: [N, L, T] float32, spikes per neuron of each layer.
        layers: L module paths, in the order of their calls.
    """

    index: Tensor
    labels: Tensor
    logits: Tensor
    pictures: Tensor
    spikes: Tensor
    rates: Tensor
    layers: tuple[str, ...]

    @classmethod
    def take(cls, network: nn.Module, data: DataSet, index: Tensor, run: Run) -> Examples:
        """Run a network in evaluation mode on the test samples with indices `index` [N], and record its response."""
        device, own = next(network.parameters()).device, data.test[index.cpu()]
        (samples,) = own.read([Block(torch.arange(len(own)))], device)
        x = data.units.scale(samples)
        with autocast(device, run.precision):
            logits, layers, trains = _fire(network, over_time(data.units.normalize(x), run.T))
        units = min(max(_FEWEST, _UNITS // len(trains)), *(train[0, 0].numel() for train in trains))
        return cls(
            index.cpu(),
            own.labels.cpu(),
            logits.transpose(0, 1).float().cpu(),
            _pictures(x).cpu(),
            torch.stack([_some(train, units) for train in trains], 1).cpu(),
            torch.stack([(train != 0).float().flatten(2).mean(2).T for train in trains], 1).cpu(),
            layers,
        )

    def save(self, folder: Path) -> None:
        """Write the file of a run folder.

        Raises:
            OSError: it can't be written.
        """
        write_whole(RunFolder(folder).examples_file, pack_tensors(self._tensors(), {"layers": list(self.layers)}))

    @classmethod
    def read(cls, folder: Path) -> Examples | None:
        """The examples in a run folder; None if there are none.

        Raises:
            ValueError: the file is broken.
        """
        file = RunFolder(folder).examples_file
        if not is_there(file):
            return None
        tensors, facts = read_tensors(file)
        try:
            examples = cls(**tensors, layers=tuple(map(str, facts["layers"])))
            examples._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} contains no examples ({error}): it was altered, or is of another version") from error
        return examples

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if name != "layers"}

    def _check(self) -> None:
        (N, T, K), L = self.logits.shape, len(self.layers)
        H, W, U = *self.pictures.shape[2:], self.spikes.shape[2]
        wanted = {
            "index": ((N,), torch.int64),
            "labels": ((N,), torch.int64),
            "logits": ((N, T, K), torch.float32),
            "pictures": ((N, 3, H, W), torch.uint8),
            "spikes": ((N, L, U, T), torch.uint8),
            "rates": ((N, L, T), torch.float32),
        }
        for name, tensor in self._tensors().items():
            if (tuple(tensor.shape), tensor.dtype) != wanted[name] or not tensor.numel():
                raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
        if not 0 <= float(self.rates.min()) <= float(self.rates.max()) <= 1:
            raise ValueError("a rate is not between 0 and 1")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < K:
            raise ValueError(f"a label is not one of {K} classes")


def _fire(network: nn.Module, x: Tensor) -> tuple[Tensor, tuple[str, ...], list[Tensor]]:
    """Logits [T, B, K], module paths of the neuron layers, and their spikes [T, B, ...], in evaluation mode."""
    trains = Trains()
    with mode(network, training=False), torch.no_grad():
        logits = Meter(trains)(network, x).steps
    names = {module: name for name, module in network.named_modules()}
    return logits, tuple(names[neuron] for neuron, _ in trains.kept), [train for _, train in trains.kept]


def _some(train: Tensor, units: int) -> Tensor:
    """[T, B, ...] -> [B, units, T]: the spikes of some neurons, spread evenly over the layer."""
    flat = train.flatten(2)
    chosen = torch.arange(units, device=train.device) * flat.shape[2] // units
    return (flat[:, :, chosen] != 0).permute(1, 2, 0).to(torch.uint8)


def _pictures(x: Tensor) -> Tensor:
    """Scaled samples [B, C, H, W] or [B, T, C, H, W] -> pictures [B, 3, h, w] uint8 of at most 96 x 96 pixels."""
    shown = x.float().mean(1) if x.dim() == 5 else x.float()
    height, width = shown.shape[2:]
    shrink = max(1.0, max(height, width) / _SIDE)
    shown = F.adaptive_avg_pool2d(shown, (max(1, round(height / shrink)), max(1, round(width / shrink))))
    if shown.shape[1] == 2:
        brightest = shown.flatten(1).amax(1).clamp(min=1e-9).view(-1, 1, 1, 1)
        shown = torch.einsum("bchw,cr->brhw", shown / brightest, torch.tensor(_EVENTS, device=x.device))
    elif shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (255 * shown.clamp(0, 1)).round().to(torch.uint8)
