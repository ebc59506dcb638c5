"""Staged networks in plain `torch.nn`: spiking by their activation, ordinary with `activation="relu"`."""

from spikerate.models.branches import Branched, DeepConv, deepconv_branches
from spikerate.models.resnet import resnet18, resnet19
from spikerate.models.staged import Staged, stage_shapes
from spikerate.models.synchronized import synchronize_batch_norm

__all__ = [
    "Branched",
    "DeepConv",
    "Staged",
    "deepconv_branches",
    "resnet18",
    "resnet19",
    "stage_shapes",
    "synchronize_batch_norm",
]
