"""What a name on the command line stands for as a network to look at: the user's own, one of ours, a preset's, a run's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from spikerate.data import SETS, entry_of, input_shape
from spikerate.models import NETWORKS
from spikerate.rules import BPTT
from spikerate.runs.config import Run
from spikerate.runs.kinds import imported, own_of, with_kinds
from spikerate.runs.presets import PRESETS
from spikerate.runs.trained import read_trained

SHAPE = (3, 32, 32)
"""Of a sample, where nothing else says it: a small colour image."""
CLASSES = 10
STEPS = 4


@dataclass(frozen=True)
class Wanted:
    """What the command line says of a network; None: what it was made for, or `SHAPE`, `CLASSES` and `STEPS`.

    Attributes:
        T: time steps.
        shape: (C, H, W) of a sample.
        classes: number of classes K.
    """

    T: int | None = None
    shape: tuple[int, int, int] | None = None
    classes: int | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, and what it takes.

    Attributes:
        about: what it is, in words.
        T: time steps.
        shape: (C, H, W) of a sample.
        recorded: whether each step of a sample has its own frame.
    """

    about: str
    network: nn.Module
    T: int
    shape: tuple[int, int, int]
    recorded: bool = False

    def noise(self, batch: int) -> Tensor:
        """An input [T, B, C, H, W]: noise of mean 0 and deviation 1, as normalised images have; the same at all steps, or
        of a recording not.
        """
        x = torch.randn(self.T if self.recorded else 1, batch, *self.shape)
        return x.expand(self.T, *x.shape[1:])


def subject(name: str, wanted: Wanted, chosen: Mapping[str, str]) -> Subject:
    """The network of that name, with fresh weights from torch's generator; of a run or a file with the best ones.

    Args:
        name: path of a run's folder or of an exported .safetensors file; "package.module:name", which leads to a function
            that makes a network, or to a module; a preset; a network of ours.
        chosen: option of `PARTS` -> name of a kind, or path to the user's own code.

    Raises:
        ValueError: there is no such network, it is an ANN, or it was made for another shape or number of classes.
    """
    if Path(name).exists():
        return _trained(name, wanted, chosen)
    if ":" in name and isinstance(module := imported(name), nn.Module):
        return Subject(f"{name}, as it is", module, wanted.T or STEPS, wanted.shape or SHAPE)
    if ":" in name or name in NETWORKS:
        run = with_kinds(Run(rule=BPTT(), T=STEPS), {**chosen, "--network": name})
        shape, classes, recorded = SHAPE, CLASSES, False
    elif name in PRESETS:
        run = with_kinds(PRESETS[name].run, chosen)
        shape, recorded = input_shape(run.data), entry_of(run.data).recorded
        classes = SETS[run.data.name].num_classes or CLASSES
    else:
        near = difflib.get_close_matches(name, [*NETWORKS, *PRESETS], 3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "give package.module:name, a network, a preset or a run"
        raise ValueError(f"there is no network, preset or run {name!r}: {hint}")
    if not run.spiking:
        raise ValueError(f"{name} is an ANN, which has no spikes: give a spiking network")
    shape, classes = wanted.shape or shape, wanted.classes or classes
    return Subject(f"{name}, fresh weights", run.build(classes, shape), wanted.T or run.T, shape, recorded)


def _trained(name: str, wanted: Wanted, chosen: Mapping[str, str]) -> Subject:
    trained = read_trained(Path(name), own=own_of(chosen))
    card = trained.card
    if not card.neuron.spiking:
        raise ValueError(f"{name} is an ANN, which has no spikes: give a spiking network")
    own = Wanted(None, card.shape, len(card.classes))
    if replace(wanted, T=None, shape=wanted.shape or own.shape, classes=wanted.classes or own.classes) != own:
        raise ValueError(f"{name} is trained for {own.classes} classes of samples {list(card.shape)}: leave them out")
    return Subject(f"{name}, trained weights", trained.network, wanted.T or card.T, card.shape, card.recorded)
