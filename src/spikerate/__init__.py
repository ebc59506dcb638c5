"""spikerate: deep spiking neural networks, trained for about the price of an ordinary network."""

from spikerate.gradients.temperature import Search, adapt
from spikerate.losses import TET, CrossEntropy, RatePenalty, SelfDistillation
from spikerate.measure.health import CheckFinite, NotFinite
from spikerate.measure.meter import FiringRates
from spikerate.models import (
    Branched,
    DeepConv,
    Staged,
    deepconv_branches,
    macs,
    preact_resnet18,
    preact_resnet34,
    resnet18,
    resnet19,
    resnet20,
    resnet34,
    sew_resnet18,
    sew_resnet34,
    spiking,
    vgg11,
    vgg13,
    vgg16,
    vggsnn,
)
from spikerate.neuron import IF, LIF
from spikerate.rules import BPTT, OTTT, SLTT, RateBP
from spikerate.runs.trained import load
from spikerate.signal import RateCoded, Signal, Spatial, Traced, Unrolled
from spikerate.surrogate import AdaptiveDspike, ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Surrogate, Triangular

__all__ = [
    "BPTT",
    "IF",
    "LIF",
    "OTTT",
    "SLTT",
    "TET",
    "ATan",
    "AdaptiveDspike",
    "Branched",
    "CheckFinite",
    "CrossEntropy",
    "DeepConv",
    "Dspike",
    "FastSigmoid",
    "FiringRates",
    "NotFinite",
    "RateBP",
    "RateCoded",
    "RatePenalty",
    "Rectangular",
    "Search",
    "SelfDistillation",
    "Sigmoid",
    "Signal",
    "Spatial",
    "Staged",
    "Surrogate",
    "Traced",
    "Triangular",
    "Unrolled",
    "adapt",
    "deepconv_branches",
    "load",
    "macs",
    "preact_resnet18",
    "preact_resnet34",
    "resnet18",
    "resnet19",
    "resnet20",
    "resnet34",
    "sew_resnet18",
    "sew_resnet34",
    "spiking",
    "vgg11",
    "vgg13",
    "vgg16",
    "vggsnn",
]
