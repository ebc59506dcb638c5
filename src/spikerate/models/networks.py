"""The networks by name, and what a network of the user's own is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from spikerate.models.airbench94 import airbench
from spikerate.models.dense import mlp, recurrent_mlp
from spikerate.models.max_resnet import max_resnet18
from spikerate.models.membrane import ms_resnet18, ms_resnet34
from spikerate.models.preact import preact_resnet18, preact_resnet34
from spikerate.models.qk_attention import qkformer
from spikerate.models.resnet import resnet18, resnet19, resnet20, resnet34
from spikerate.models.sew import sew_resnet18, sew_resnet34
from spikerate.models.spike_driven import spike_driven_transformer
from spikerate.models.spiking_attention import spikformer
from spikerate.models.staged import Staged
from spikerate.models.vgg import vgg11, vgg13, vgg16, vggsnn


@runtime_checkable
class NetworkFactory(Protocol):
    """What makes a network: a function at the top of a module, or a frozen dataclass that is called like one."""

    def __call__(self, num_classes: int, in_shape: tuple[int, int, int], neuron: Callable[[], nn.Module]) -> nn.Module:
        """A new network for samples [C, H, W], with fresh weights from PyTorch's global generator.

        Args:
            num_classes: K.
            in_shape: (C, H, W).
            neuron: makes a new layer of neurons; the network calls it once for each.

        Returns:
            a module that maps a signal [B, C, H, W] to one [B, K]; for self-distillation a `Staged`.
        """


@dataclass(frozen=True)
class Builder:
    """A network of the library.

    Attributes:
        make: called with (num_classes, in_channels, width, activation), and what else it takes.
        stems: the forms that its first layers have, the first of them by default; () if there is one form only.
        sided: whether its head depends on the side of the samples.
        flat: whether it takes the values of a sample in any shape; their number stands for in_channels.
        recurrent: whether spikes come back to its neurons, which `RateBP` refuses.
        sizes: what else it can be given, by name: of "depth", "heads" and "patch".
    """

    make: Callable[..., Staged]
    stems: tuple[str, ...] = ()
    sided: bool = False
    flat: bool = False
    recurrent: bool = False
    sizes: tuple[str, ...] = ()


_RESIDUAL = ("3x3", "7x7")
NETWORKS = {
    "resnet18": Builder(resnet18, stems=_RESIDUAL),
    "resnet19": Builder(resnet19),
    "resnet20": Builder(resnet20),
    "resnet34": Builder(resnet34, stems=_RESIDUAL),
    "preact-resnet18": Builder(preact_resnet18, stems=_RESIDUAL),
    "preact-resnet34": Builder(preact_resnet34, stems=_RESIDUAL),
    "ms-resnet18": Builder(ms_resnet18, stems=_RESIDUAL),
    "ms-resnet34": Builder(ms_resnet34, stems=_RESIDUAL),
    "max-resnet18": Builder(max_resnet18, stems=_RESIDUAL),
    "sew-resnet18": Builder(sew_resnet18, stems=_RESIDUAL),
    "sew-resnet34": Builder(sew_resnet34, stems=_RESIDUAL),
    "vgg11": Builder(vgg11),
    "vgg13": Builder(vgg13),
    "vgg16": Builder(vgg16),
    "vggsnn": Builder(vggsnn, sided=True),
    "spikformer": Builder(spikformer, sizes=("depth", "heads", "patch")),
    "sdt": Builder(spike_driven_transformer, sizes=("depth", "patch")),
    "qkformer": Builder(qkformer, sizes=("depth", "heads", "patch")),
    "airbench": Builder(airbench, stems=("3x3", "whitening")),
    "mlp": Builder(mlp, flat=True, sizes=("depth",)),
    "recurrent": Builder(recurrent_mlp, flat=True, recurrent=True, sizes=("depth",)),
}
