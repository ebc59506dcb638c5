"""Networks in plain `torch.nn`: spiking with `activation=LIF`, ordinary ANNs with `activation="relu"`."""

from spikerate.models.airbench94 import airbench
from spikerate.models.branches import Branched, DeepConv, body_of, deepconv_branches
from spikerate.models.convert import check_layers, spiking
from spikerate.models.cost import branch_macs, macs, step_macs
from spikerate.models.dense import mlp, recurrent_mlp
from spikerate.models.features import Features
from spikerate.models.fold import fold_batch_norm
from spikerate.models.max_resnet import max_resnet18
from spikerate.models.membrane import ms_resnet18, ms_resnet34
from spikerate.models.networks import NETWORKS, Builder, NetworkFactory
from spikerate.models.preact import preact_resnet18, preact_resnet34
from spikerate.models.qk_attention import qkformer
from spikerate.models.resnet import resnet18, resnet19, resnet20, resnet34
from spikerate.models.sew import sew_resnet18, sew_resnet34
from spikerate.models.spike_driven import spike_driven_transformer
from spikerate.models.spiking_attention import spikformer
from spikerate.models.staged import Staged, short_path, stage_shapes
from spikerate.models.synchronized import Synchronized, synchronize_batch_norm
from spikerate.models.vgg import vgg11, vgg13, vgg16, vggsnn
from spikerate.models.whitening import FromImages, Whitening

__all__ = [
    "NETWORKS",
    "Branched",
    "Builder",
    "DeepConv",
    "Features",
    "FromImages",
    "NetworkFactory",
    "Staged",
    "Synchronized",
    "Whitening",
    "airbench",
    "body_of",
    "branch_macs",
    "check_layers",
    "deepconv_branches",
    "fold_batch_norm",
    "macs",
    "max_resnet18",
    "mlp",
    "ms_resnet18",
    "ms_resnet34",
    "preact_resnet18",
    "preact_resnet34",
    "qkformer",
    "recurrent_mlp",
    "resnet18",
    "resnet19",
    "resnet20",
    "resnet34",
    "sew_resnet18",
    "sew_resnet34",
    "short_path",
    "spike_driven_transformer",
    "spikformer",
    "spiking",
    "stage_shapes",
    "step_macs",
    "synchronize_batch_norm",
    "vgg11",
    "vgg13",
    "vgg16",
    "vggsnn",
]
