"""What one image costs on a chip: the operations of each layer, and an estimate of the energy of their arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

MAC_PJ, AC_PJ = 4.6, 0.9
"""32-bit floating point in 45 nm at 0.9 V: 3.7 pJ for a multiplication, 0.9 pJ for an addition (Horowitz, ISSCC 2014)."""
CAVEAT = "arithmetic alone, in 45 nm; memory, which takes more on most chips, neurons, batch norm and pooling are left out"


@dataclass(frozen=True)
class Operations:
    """Synaptic operations of a convolution or linear layer for one image, over all time steps.

    Attributes:
        effective: operations where neither input nor weight is 0, the mean over the images.
        dense: all operations, zeros included, but without those on the padding around an image.
        binary: whether every input value was 0 or 1, so that an operation only accumulates a weight.
    """

    effective: float
    dense: int
    binary: bool

    @property
    def macs(self) -> float:
        """Multiply-accumulates: all effective operations if the input is real-valued, else 0."""
        return 0.0 if self.binary else self.effective

    @property
    def acs(self) -> float:
        """Accumulates: all effective operations if the input is binary, else 0."""
        return self.effective if self.binary else 0.0

    @property
    def nanojoules(self) -> float:
        """Estimated energy of the effective operations in nJ."""
        return nanojoules(self.macs, self.acs)

    @property
    def input(self) -> str:
        """The kind of input: "binary" or "real"."""
        return "binary" if self.binary else "real"

    def record(self) -> dict[str, Any]:
        """The entry of `result.json`."""
        return {"macs": self.macs, "acs": self.acs, "dense_macs": self.dense, "input": self.input}


@dataclass(frozen=True)
class Energy:
    """What one image costs over all T time steps.

    Attributes:
        layers: module path -> operations, in the order of the calls.
        T: time steps.
    """

    layers: Mapping[str, Operations]
    T: int

    @classmethod
    def mean(cls, runs: Sequence[Energy]) -> Energy:
        """The mean over runs of one network with the same T; a layer counts as binary if it is so in all runs."""
        layers = {}
        for path, layer in runs[0].layers.items():
            same = [run.layers[path] for run in runs if path in run.layers]
            effective = fmean(operations.effective for operations in same)
            layers[path] = Operations(effective, layer.dense, all(operations.binary for operations in same))
        return cls(layers, runs[0].T)

    @property
    def macs(self) -> float:
        """Effective multiply-accumulates."""
        return sum(layer.macs for layer in self.layers.values())

    @property
    def acs(self) -> float:
        """Effective accumulates."""
        return sum(layer.acs for layer in self.layers.values())

    @property
    def synaptic_operations(self) -> float:
        """Effective multiply-accumulates and accumulates together."""
        return self.macs + self.acs

    @property
    def dense(self) -> int:
        """All operations, zeros included."""
        return sum(layer.dense for layer in self.layers.values())

    @property
    def snn_nj(self) -> float:
        """Estimated energy of the network in nJ: `4.6 pJ * MACs + 0.9 pJ * ACs`."""
        return nanojoules(self.macs, self.acs)

    @property
    def ann_nj(self) -> float:
        """Estimated energy in nJ of the ANN of the same shape: every multiply-accumulate once, zeros included."""
        return nanojoules(self.dense / self.T, 0)

    def record(self) -> dict[str, Any]:
        """The entries of `result.json`."""
        names = ("snn_nj", "ann_nj", "synaptic_operations", "macs", "acs")
        numbers = (self.snn_nj, self.ann_nj, self.synaptic_operations, self.macs, self.acs)
        return {
            "operations": {path: layer.record() for path, layer in self.layers.items()},
            "energy": dict(zip(names, numbers, strict=True)),
        }


def joules_in_words(nanojoules: float) -> str:
    """An energy to three digits: "464 pJ", "12.3 nJ", "4.56 µJ", "789 mJ"."""
    value = float(f"{nanojoules:.3g}")
    unit, size = next(((u, s) for u, s in (("mJ", 1e6), ("µJ", 1e3), ("nJ", 1)) if value >= s), ("pJ", 1e-3))
    return f"{value / size:.3g} {unit}"


def nanojoules(macs: float, acs: float) -> float:
    """The estimate: `(4.6 pJ * MACs + 0.9 pJ * ACs) / 1000`."""
    return (MAC_PJ * macs + AC_PJ * acs) / 1000
