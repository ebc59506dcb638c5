"""Optimiser and learning-rate schedule of the method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from spikerate.system.ranges import check_number, check_positive, check_share


@dataclass(frozen=True)
class Optim:
    """Stochastic gradient descent with momentum (Nesterov off), and a cosine from `lr` to 0 over all steps of the run."""

    lr: float = 0.1
    """learning rate at the start"""
    momentum: float = 0.9
    """momentum, in [0, 1)"""
    weight_decay: float = 5e-4
    """weight decay of matrices and kernels; vectors (batch norm, biases) have none"""
    loss_scale: Literal["1/T", "1"] = "1"
    """factor on the gradient of the loss: the authors of RateBP and ESD divide it by T; the loss shown is never scaled"""

    def __post_init__(self) -> None:
        check_positive("optim.lr", self.lr)
        if self.loss_scale not in ("1/T", "1"):
            raise ValueError(f"optim.loss_scale is {self.loss_scale!r}: give '1/T' or '1'")
        check_share("optim.momentum", self.momentum)
        check_number("optim.weight_decay", self.weight_decay, 0)

    def build(self, network: nn.Module) -> torch.optim.SGD:
        """The optimiser of all parameters of a network, in two groups: matrices and kernels, and vectors."""
        parameters = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.SGD([g for g in groups if g["params"]], lr=self.lr, momentum=self.momentum)

    def lr_at(self, progress: float) -> float:
        """The learning rate after a share `progress` in [0, 1] of all steps."""
        return self.lr * (1 + math.cos(math.pi * progress)) / 2

    def scale(self, T: int) -> float:
        """The factor on the gradient of the loss for T time steps."""
        return 1 / T if self.loss_scale == "1/T" else 1.0
