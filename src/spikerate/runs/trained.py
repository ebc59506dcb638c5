"""A trained network with what is needed to use it, from its run folder or from an exported file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikerate.data import LARGEST_SIDE, Units, entry_of
from spikerate.gradients.temperature import adapt
from spikerate.models import body_of
from spikerate.neuron import NeuronSettings
from spikerate.runs.config import Model, OwnNetwork
from spikerate.runs.record import Record, RunFolder
from spikerate.runs.state import load_weights
from spikerate.system.codec import Own, decode, encode
from spikerate.system.files import pack_tensors, read_tensors
from spikerate.system.ranges import MOST_STEPS

FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What is needed to build a trained network and to use it.

    Attributes:
        model: architecture.
        neuron: neurons of all layers.
        adaptive: whether the temperature of its surrogates is a buffer (`AdaptiveDspike`).
        T: time steps.
        shape: (C, H, W) of a sample.
        recorded: whether samples are recordings cut into T frames, not still images.
        classes: K names, in the order of the logits.
        units: how stored samples are scaled and normalised.
    """

    model: Model | OwnNetwork
    neuron: NeuronSettings
    adaptive: bool
    T: int
    shape: tuple[int, int, int]
    recorded: bool
    classes: tuple[str, ...]
    units: Units

    def __post_init__(self) -> None:
        mean, std, unit = self.units.mean, self.units.std, self.units.unit
        counts = 1 <= self.T <= MOST_STEPS and min(self.shape) >= 1 and max(self.shape[1:]) <= LARGEST_SIDE
        finite = all(map(math.isfinite, (*mean, *std, unit)))
        if not (counts and finite and len(mean) == len(std) == self.shape[0] and min((*std, unit)) > 0):
            raise ValueError("its numbers are impossible or contradict each other")

    @classmethod
    def of_run(cls, record: Record) -> Card:
        """The card of a run, from its record.

        Raises:
            ValueError: the record is broken, of another version, or does not describe the samples.
        """
        run = record.run
        try:
            data = record.about["data"]
            c, h, w = map(int, data["shape"])
            units = Units(tuple(map(float, data["mean"])), tuple(map(float, data["std"])), float(data["unit"]))
            recorded, classes = entry_of(run.data).recorded, tuple(map(str, data["classes"]))
            return cls(run.model, run.neuron, run.search is not None, run.T, (c, h, w), recorded, classes, units)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{record.folder.run_file} does not describe the samples ({error!r}): it was altered, or is of "
                "another version"
            ) from error

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """[C, H, W] of an image, [T, C, H, W] of a recording."""
        return (self.T, *self.shape) if self.recorded else self.shape

    def build(self) -> nn.Module:
        """The network without branches in evaluation mode, with random weights; the global random state is unchanged."""
        with torch.random.fork_rng(devices=[]):
            body = self.model.build(len(self.classes), self.shape, self.neuron)
        return (adapt(body) if self.adaptive else body).eval()


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, in evaluation mode and without its branches."""

    network: nn.Module
    card: Card

    @classmethod
    def of_run(cls, record: Record, weights: str = "best") -> Trained:
        """The network of a run, with its "best" or "last" weights.

        Raises:
            ValueError: as `Card.of_run`, or the weights are missing or broken.
        """
        card = Card.of_run(record)
        with torch.random.fork_rng(devices=[]):
            whole = record.run.build(len(card.classes), card.shape)
        record.folder.load_weights(weights, whole)
        return cls(body_of(whole).eval(), card)

    def facts(self) -> dict[str, Any]:
        """The card with its format and version as JSON types, which is part of every exported file."""
        return {"format": FORMAT, "spikerate": version("spikerate"), "network": encode(self.card)}

    def pack(self) -> bytes:
        """The bytes of a safetensors file with the weights, and the facts in its metadata; `load` reads it."""
        return pack_tensors(self.network.state_dict(), self.facts())


def load(path: str | Path, *own: Any) -> nn.Module:
    """The network of a run folder (its best weights), or of a .safetensors file of `spikerate export`.

    It is in evaluation mode, on the CPU and without branches. Call it by any rule, for instance `BPTT()(load(path), x)`,
    with normalised samples x [T, B, C, H, W]. `read_trained` also returns their units, the classes and T.

    Args:
        own: classes and functions of your own that the network has: a file that names them imports nothing.

    Raises:
        ValueError: the file or the folder is missing, broken, of another kind, or of another version.
    """
    return read_trained(Path(path), own=Own.of(*own)).network


def read_trained(path: Path, weights: str = "best", own: Own = Own()) -> Trained:
    """The network and its card, from a run folder or from a file made by `Trained.pack`.

    Args:
        path: the folder or the file.
        weights: "best" or "last" weights of a run; a file has one set of weights only.
        own: the user's own code that the network may use.

    Raises:
        ValueError: as `load`, or the last weights of a file are asked for.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: give the folder of a run, or a .safetensors file of spikerate export")
    if not path.is_dir() and weights != "best":
        raise ValueError(f"{path} is a file, which has only one set of weights: the {weights} ones are in the run folder")
    return Trained.of_run(RunFolder.open(path, own).record(), weights) if path.is_dir() else _of_file(path, own)


def _of_file(path: Path, own: Own) -> Trained:
    tensors, facts = read_tensors(path.resolve())  # a link of the user's own
    if "network" not in facts:
        raise ValueError(
            f"{path} has weights but does not describe the network: give a run folder, or a file of spikerate export"
        )
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}: spikerate {facts.get('spikerate')} has written it")
    try:
        card: Card = decode(Card, facts["network"], "network", own)
        # First on the meta device: a few bytes can describe a network that fills the memory, but weights of that size
        # are not in the file.
        with torch.device("meta"):
            load_weights(card.build(), {name: value.to("meta") for name, value in tensors.items()}, str(path))
        network = card.build()
    except ValueError as error:
        raise ValueError(f"{path} does not describe its network: {error}") from error
    load_weights(network, tensors, str(path))
    return Trained(network, card)
