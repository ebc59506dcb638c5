"""Optimisers as values, each with a learning-rate schedule, gradient clipping and an average of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikerate.runs.schedule import Cosine, Schedule
from spikerate.system.codec import added
from spikerate.system.ranges import LARGEST, MOST_SAMPLES, SMALLEST


@dataclass(frozen=True)
class OptimizerFactory(ABC):
    """The base class of `Run.optim`: an optimiser with its schedule.

    It is implemented by `SGD`, `AdamW` and `Muon`. Your own is a frozen dataclass with a field `lr` and a method `build`:

        @dataclass(frozen=True)
        class RMSprop(OptimizerFactory):
            lr: float = 1e-3

            def build(self, network):
                return [torch.optim.RMSprop(network.parameters(), lr=self.lr)]

    Its optimisers may be any of PyTorch's whose `step()` needs no closure, and whose `state_dict()` consists of tensors,
    numbers, None, and lists, tuples and dicts of these (strings only in the groups' settings), as checkpoints store these.
    """

    lr: float
    """highest learning rate"""
    _: KW_ONLY
    schedule: Schedule = Cosine()
    clip: float | None = None
    """largest Euclidean norm of all gradients together; larger gradients are scaled down to it"""
    ema: float | None = None
    """decay of an exponential average of the weights, in (0, 1), for instance 0.999; validation accuracy, `best` weights and
    test accuracy are then those of the averaged network"""
    loss_scale: Literal["1/T", "1"] = "1"
    """factor on the gradient of the loss: the authors of RateBP and ESD divide it by T; the reported loss is never scaled"""
    lookahead: int | None = added(None)
    """number of steps after which slow weights move towards those that are trained, which then go on from there
    (arXiv 1907.08610); validation accuracy, `best` weights and test accuracy are then those of the slow weights"""
    lookahead_keep: float = added(0.5)
    """what the slow weights keep of themselves, in [0, 1): 1 - alpha of the paper; 0.95^5 = 0.774 in cifar10-airbench"""
    lookahead_power: float = added(0.0)
    """the share is multiplied by the progress of the run, in (0, 1], to this power: 0 in the paper, 3 in cifar10-airbench"""

    def __post_init__(self) -> None:
        self.check("lr", SMALLEST <= self.lr <= LARGEST, f"a positive number up to {LARGEST:g}")
        self.check(
            "clip", self.clip is None or SMALLEST <= self.clip <= LARGEST, f"a positive number up to {LARGEST:g}, or None"
        )
        self.check("ema", self.ema is None or 0 < self.ema < 1, "a number between 0 and 1, or None")
        self.check("loss_scale", self.loss_scale in ("1/T", "1"), "'1/T' or '1'")
        whole = self.lookahead is None or (1 <= self.lookahead <= MOST_SAMPLES and self.lookahead == int(self.lookahead))
        self.check("lookahead", whole, f"a number of steps >= 1, and {MOST_SAMPLES:,} at most, or None")
        self.check("lookahead", self.lookahead is None or self.ema is None, "None, or optim.ema None: there is one average")
        self.check("lookahead_keep", 0 <= self.lookahead_keep < 1, "a number in [0, 1)")
        self.check("lookahead_power", 0 <= self.lookahead_power <= LARGEST, f"a number >= 0, up to {LARGEST:g}")

    @abstractmethod
    def build(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        """New optimisers for a network's parameters, each of which is in exactly one of them.

        Their groups have the highest learning rate; at every step it is multiplied by the schedule.
        """

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, ... of a run of `steps` steps."""
        return self.lr * self.schedule(step, steps)

    def scale(self, T: int) -> float:
        """The factor on the gradient of the loss for T time steps."""
        return 1 / T if self.loss_scale == "1/T" else 1.0

    @property
    def averages(self) -> bool:
        """Whether there is an average of the weights, which is evaluated in place of those that are trained."""
        return self.ema is not None or self.lookahead is not None

    def ema_at(self, step: int) -> float:
        """The decay of the average at step 0, 1, ...: min(ema, (1 + step) / (10 + step)).

        It is small at first, so that the average soon forgets the random initial weights.

        Raises:
            ValueError: there is no average.
        """
        if self.ema is None:
            raise ValueError("optim.ema is None: there is no average of the weights")
        return min(self.ema, (1 + step) / (10 + step))

    def kept_at(self, step: int, steps: int) -> float:
        """The share that lookahead's slow weights keep after step 0, 1, ...: lookahead_keep ((step + 1) / steps)^power."""
        return float(self.lookahead_keep * ((step + 1) / steps) ** self.lookahead_power)

    def check(self, name: str, right: bool, wanted: str) -> None:
        """Raise `ValueError` with the field's name, its value and what is `wanted`, unless it is `right`."""
        if not right:
            raise ValueError(f"optim.{name} is {getattr(self, name)!r}: give {wanted}")


@dataclass(frozen=True)
class SGD(OptimizerFactory):
    """Stochastic gradient descent with momentum: `torch.optim.SGD`."""

    lr: float = 0.1
    """highest learning rate"""
    momentum: float = 0.9
    """momentum, in [0, 1)"""
    weight_decay: float = 5e-4
    """weight decay of matrices and kernels; vectors (batch norm, biases) have none"""
    nesterov: bool = False
    """use Nesterov momentum"""
    bias_lr: float = added(1.0)
    """factor on the learning rate of biases, those of batch norm too; 64 for those of batch norm in cifar10-airbench"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        self.check("weight_decay", 0 <= self.weight_decay <= LARGEST, f"a number >= 0, up to {LARGEST:g}")
        _check_bias_lr(self, self.bias_lr)
        self.check("nesterov", not self.nesterov or self.momentum > 0, "False, or a positive momentum")

    def build(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        groups = _groups(network, _trained(network), self.weight_decay, self.lr, self.bias_lr)
        return [torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)]


@dataclass(frozen=True)
class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay: `torch.optim.AdamW`. Reference: Loshchilov and Hutter, ICLR 2019."""

    lr: float = 2e-3
    """highest learning rate"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay of the averages of the gradient and of its square, each in [0, 1)"""
    eps: float = 1e-8
    """added to the square root of the averaged square"""
    weight_decay: float = 0.05
    """weight decay of matrices and kernels; vectors (batch norm, biases) have none"""
    bias_lr: float = added(1.0)
    """factor on the learning rate of biases, those of batch norm too; 64 for those of batch norm in cifar10-airbench"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_adam(self, self.betas, self.weight_decay)
        _check_bias_lr(self, self.bias_lr)
        self.check("eps", SMALLEST <= self.eps <= LARGEST, f"a positive number up to {LARGEST:g}")

    def build(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        groups = _groups(network, _trained(network), self.weight_decay, self.lr, self.bias_lr)
        return [torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)]


@dataclass(frozen=True)
class Muon(OptimizerFactory):
    """Orthogonalised momentum for kernels and hidden matrices, `torch.optim.Muon`, and AdamW for all other parameters.

    A kernel [O, C, h, w] is treated as the matrix [O, C h w]. Updates are scaled to the typical size of AdamW's
    (`match_rms_adamw`), so that both use learning rates of the same magnitude. AdamW trains biases, batch norm, and the
    classifiers of head and branches: the network's last matrix, and all matrices with as many outputs.

    References: Jordan et al., "Muon", 2024; Liu et al., "Muon is scalable for LLM training", 2025.
    """

    lr: float = 2e-3
    """highest learning rate"""
    momentum: float = 0.95
    """momentum, in [0, 1)"""
    nesterov: bool = True
    """use Nesterov momentum"""
    weight_decay: float = 0.05
    """weight decay of matrices and kernels; vectors (batch norm, biases) have none"""
    adamw_lr: float | None = None
    """highest learning rate of the parameters that AdamW trains; by default lr"""
    adamw_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the averages of the gradient and of its square, each in [0, 1)"""
    bias_lr: float = added(1.0)
    """factor on the learning rate of biases, those of batch norm too; 64 for those of batch norm in cifar10-airbench"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        self.check(
            "adamw_lr",
            self.adamw_lr is None or SMALLEST <= self.adamw_lr <= LARGEST,
            f"a positive number up to {LARGEST:g}, or None",
        )
        _check_adam(self, self.adamw_betas, self.weight_decay, "adamw_betas")
        _check_bias_lr(self, self.bias_lr)

    def build(self, network: nn.Module) -> Sequence[torch.optim.Optimizer]:
        """New optimisers: Muon, and AdamW for the other parameters.

        Raises:
            ValueError: the network has no kernels and no hidden matrices, or the installed PyTorch has no Muon.
        """
        parameters = _trained(network)
        outputs = [p.shape[0] for p in parameters if p.dim() == 2][-1:]
        hidden = [p for p in parameters if p.dim() > 2 or (p.dim() == 2 and p.shape[0] not in outputs)]
        if not hidden:
            raise ValueError("the network has no kernels and no hidden matrices, so there is nothing for Muon: give adamw")
        own = {id(p) for p in hidden}
        others = [p for p in parameters if id(p) not in own]
        optimizers: list[torch.optim.Optimizer] = [self._muon(hidden)]
        if others:
            lr = self.lr if self.adamw_lr is None else self.adamw_lr
            groups = _groups(network, others, self.weight_decay, lr, self.bias_lr)
            optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=self.adamw_betas))
        return optimizers

    def _muon(self, kernels: list[nn.Parameter]) -> torch.optim.Optimizer:
        """torch's Muon, which takes matrices only, on views of the kernels and, before each step, of their gradients."""
        try:
            kind = torch.optim.Muon
        except AttributeError as error:
            raise ValueError(f"torch {torch.__version__} has no Muon: install torch 2.9 or newer, or give adamw") from error
        matrices = [nn.Parameter(_as_matrix(kernel.detach(), like=kernel)) for kernel in kernels]
        muon = kind(
            matrices,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

        def lend(*_: Any) -> None:
            for kernel, matrix in zip(kernels, matrices, strict=True):
                matrix.data = _as_matrix(kernel.detach(), like=kernel)  # anew, since moving a module replaces its data
                matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad, like=kernel)

        muon.register_step_pre_hook(lend)
        return muon


def _as_matrix(kernel: Tensor, like: Tensor) -> Tensor:
    """[O, C, h, w] as [O, C h w] with columns in the memory order of `like`, so that a view of `like` needs no copy."""
    last = kernel.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return (kernel.permute(0, 2, 3, 1) if last else kernel).reshape(len(kernel), -1)


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _groups(
    network: nn.Module, parameters: Iterable[nn.Parameter], weight_decay: float, lr: float, bias_lr: float
) -> list[dict[str, Any]]:
    """Groups: matrices and kernels; vectors, which have no weight decay; biases, if their learning rate is another one."""
    parameters = list(parameters)
    named = network.named_parameters() if bias_lr != 1 else ()
    biases = {id(p) for name, p in named if p.dim() <= 1 and name.rpartition(".")[2] == "bias"}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1 and id(p) not in biases], "weight_decay": 0.0},
        {"params": [p for p in parameters if id(p) in biases], "weight_decay": 0.0, "lr": lr * bias_lr},
    ]
    return [group for group in groups if group["params"]]


def _check_bias_lr(optim: OptimizerFactory, bias_lr: float) -> None:
    optim.check("bias_lr", SMALLEST <= bias_lr <= LARGEST, f"a positive number up to {LARGEST:g}")


def _check_adam(optim: OptimizerFactory, betas: tuple[float, float], weight_decay: float, name: str = "betas") -> None:
    optim.check(name, all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")
    optim.check("weight_decay", 0 <= weight_decay <= LARGEST, f"a number >= 0, up to {LARGEST:g}")
