"""spikerate: deep spiking neural networks, trained for about the price of an ordinary network.

A name is imported from its module when it is first used, so that each brings only what it needs: `from spikerate import LIF`
brings PyTorch and nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikerate.adaptive import ALIF
    from spikerate.gradients.temperature import Search, adapt
    from spikerate.integer import ILIF
    from spikerate.learnable import PLIF, Learnable, LearningStepNeuron, ParametricLIF
    from spikerate.losses import TET, CrossEntropy, Loss, RatePenalty, SelfDistillation
    from spikerate.measure.check import Check, check
    from spikerate.measure.health import CheckFinite, NotFinite
    from spikerate.measure.meter import FiringRates
    from spikerate.measure.recording import record
    from spikerate.models import (
        Branched,
        DeepConv,
        Staged,
        airbench,
        deepconv_branches,
        macs,
        max_resnet18,
        mlp,
        ms_resnet18,
        ms_resnet34,
        preact_resnet18,
        preact_resnet34,
        qkformer,
        recurrent_mlp,
        resnet18,
        resnet19,
        resnet20,
        resnet34,
        sew_resnet18,
        sew_resnet34,
        spike_driven_transformer,
        spikformer,
        spiking,
        vgg11,
        vgg13,
        vgg16,
        vggsnn,
    )
    from spikerate.neuron import IF, LIF, NeuronSettings, StepNeuron
    from spikerate.operations import operation
    from spikerate.readout import Readout
    from spikerate.recurrent import Recurrent
    from spikerate.rules import BPTT, OTTT, SLTT, RateBP, Rule
    from spikerate.runs.trained import load
    from spikerate.signal import Neuron, RateCoded, Signal, Spatial, Traced, Unrolled
    from spikerate.surrogate import AdaptiveDspike, ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Surrogate, Triangular
    from spikerate.synaptic import Synaptic

__all__ = [
    "ALIF",
    "BPTT",
    "IF",
    "ILIF",
    "LIF",
    "OTTT",
    "PLIF",
    "SLTT",
    "TET",
    "ATan",
    "AdaptiveDspike",
    "Branched",
    "Check",
    "CheckFinite",
    "CrossEntropy",
    "DeepConv",
    "Dspike",
    "FastSigmoid",
    "FiringRates",
    "Learnable",
    "LearningStepNeuron",
    "Loss",
    "Neuron",
    "NeuronSettings",
    "NotFinite",
    "ParametricLIF",
    "RateBP",
    "RateCoded",
    "RatePenalty",
    "Readout",
    "Rectangular",
    "Recurrent",
    "Rule",
    "Search",
    "SelfDistillation",
    "Sigmoid",
    "Signal",
    "Spatial",
    "Staged",
    "StepNeuron",
    "Surrogate",
    "Synaptic",
    "Traced",
    "Triangular",
    "Unrolled",
    "adapt",
    "airbench",
    "check",
    "deepconv_branches",
    "load",
    "macs",
    "max_resnet18",
    "mlp",
    "ms_resnet18",
    "ms_resnet34",
    "operation",
    "preact_resnet18",
    "preact_resnet34",
    "qkformer",
    "record",
    "recurrent_mlp",
    "resnet18",
    "resnet19",
    "resnet20",
    "resnet34",
    "sew_resnet18",
    "sew_resnet34",
    "spike_driven_transformer",
    "spikformer",
    "spiking",
    "vgg11",
    "vgg13",
    "vgg16",
    "vggsnn",
]

_MODULES = {
    "adaptive": "ALIF",
    "gradients.temperature": "Search adapt",
    "integer": "ILIF",
    "learnable": "PLIF Learnable LearningStepNeuron ParametricLIF",
    "losses": "TET CrossEntropy Loss RatePenalty SelfDistillation",
    "measure.check": "Check check",
    "measure.health": "CheckFinite NotFinite",
    "measure.meter": "FiringRates",
    "measure.recording": "record",
    "models": (
        "Branched DeepConv Staged airbench deepconv_branches macs max_resnet18 mlp ms_resnet18 ms_resnet34 preact_resnet18 "
        "preact_resnet34 qkformer recurrent_mlp resnet18 resnet19 resnet20 resnet34 sew_resnet18 sew_resnet34 "
        "spike_driven_transformer spikformer spiking vgg11 vgg13 vgg16 vggsnn"
    ),
    "neuron": "IF LIF NeuronSettings StepNeuron",
    "operations": "operation",
    "readout": "Readout",
    "recurrent": "Recurrent",
    "rules": "BPTT OTTT SLTT RateBP Rule",
    "runs.trained": "load",
    "signal": "Neuron RateCoded Signal Spatial Traced Unrolled",
    "surrogate": "AdaptiveDspike ATan Dspike FastSigmoid Rectangular Sigmoid Surrogate Triangular",
    "synaptic": "Synaptic",
}
"""Where each name is at home, as the imports above say for those who check types."""
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'spikerate' has no attribute {name!r}")
    value = vars(importlib.import_module(f"spikerate.{_HOMES[name]}"))[name]
    globals()[name] = value  # the next time it is found at once
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _HOMES.keys())
