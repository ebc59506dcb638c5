"""spikerate: deep spiking neural networks, trained for about the price of an ordinary network."""

from spikerate.losses import CrossEntropy, SelfDistillation
from spikerate.models import Branched, DeepConv, Staged, deepconv_branches, resnet18, resnet19
from spikerate.neuron import IF, LIF
from spikerate.rules import BPTT, RateBP
from spikerate.signal import RateCoded, Signal, Unrolled
from spikerate.surrogate import ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Surrogate, Triangular

__all__ = [
    "BPTT",
    "IF",
    "LIF",
    "ATan",
    "Branched",
    "CrossEntropy",
    "DeepConv",
    "Dspike",
    "FastSigmoid",
    "RateBP",
    "RateCoded",
    "Rectangular",
    "SelfDistillation",
    "Sigmoid",
    "Signal",
    "Staged",
    "Surrogate",
    "Triangular",
    "Unrolled",
    "deepconv_branches",
    "resnet18",
    "resnet19",
]
