"""The state of a training run: everything that its next step depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.losses import Terms

Row = dict[str, Any]


@dataclass
class State:
    """Network and optimisers, and the progress of the run.

    It needs no random state, since the random numbers of a step follow from (seed, epoch, step), and no state of the
    schedule, since the learning rate is a function of the step. Training rules keep nothing between steps.

    Attributes:
        network: the network.
        optimizers: new optimisers whose groups have the highest learning rates, which are kept as `initial_lr`.
        average: a copy of the network with averaged weights; None if the run does not average.
        epoch: number of finished epochs.
        step: number of finished steps of the current epoch.
        totals: sums of the loss terms over these steps.
        rows: metrics of the finished epochs, as in `metrics.jsonl`.
        found: results of the temperature search before the current epoch; the temperatures are in the network's buffers.
        spent: seconds of the finished steps of the current epoch by name, for the row of the epoch.
    """

    network: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: nn.Module | None = None
    epoch: int = 0
    step: int = 0
    totals: Terms = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    found: Row = field(default_factory=dict)
    spent: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    @property
    def trained(self) -> nn.Module:
        """The network to evaluate and to save as `best`: the average if there is one."""
        return self.network if self.average is None else self.average

    def set_lr(self, share: float) -> None:
        """Set the learning rate of every group to this fraction of its highest one."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share

    @property
    def best(self) -> Row:
        """The row of the epoch whose weights are `best`: that of the highest validation accuracy, the last one on a tie."""
        return max(self.rows, key=lambda row: (row.get("validation", 0.0), row["epoch"]))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name: weights and buffers of network and average, tensors of the optimisers, and the totals."""
        kept = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.average is not None:
            kept |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        return kept | self._optimizers()[1] | {f"totals.{name}": value for name, value in self.totals.items()}

    def facts(self) -> dict[str, Any]:
        """Everything except tensors, as JSON types."""
        counted = {"epoch": self.epoch, "step": self.step, "rows": self.rows, "found": self.found, "spent": self.spent}
        return counted | {"optimizers": self._optimizers()[0]}

    def _optimizers(self) -> tuple[list[Any], dict[str, Tensor]]:
        """The state of the optimisers, in which tensors are replaced by names, and these tensors by name."""
        tensors: dict[str, Tensor] = {}
        kept = []
        for k, optimizer in enumerate(self.optimizers):
            packed = {
                name: _pack(value, f"optimizer.{k}.{name}", tensors, texts=name == "param_groups")
                for name, value in optimizer.state_dict().items()
            }
            kept.append({"type": type(optimizer).__name__, **packed})
        return kept, tensors

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], where: str) -> None:
        """Load the state in a file.

        Args:
            tensors, facts: content of the file.
            where: name of the file for messages.

        Raises:
            ValueError: the file is of another network, optimiser or version of spikerate, or has impossible content.
        """
        parts = parts_of(tensors, facts, where)
        load_weights(self.network, parts["network"], where)
        if self.average is not None:
            load_weights(self.average, parts["average"], where)
        self._restore_optimizers(facts["optimizers"], tensors, where)
        device = next(self.network.parameters()).device
        self.totals = {name: value.to(device) for name, value in parts["totals"].items()}
        self.epoch, self.step = facts["epoch"], facts["step"]
        self.rows, self.found, self.spent = facts["rows"], facts["found"], facts.get("spent", {})

    def check_within(self, epochs: int, steps: int) -> None:
        """Raise `ValueError` if a run with this number of epochs and steps per epoch can't have this progress."""
        if self.step >= steps or self.epoch > epochs or (self.epoch == epochs and self.step):
            raise ValueError(
                f"the checkpoint is after epoch {self.epoch} and {self.step} more steps, but the run has "
                f"{epochs} epochs of {steps} steps: it was altered"
            )

    def _restore_optimizers(self, kept: Any, tensors: dict[str, Tensor], where: str) -> None:
        names = [type(optimizer).__name__ for optimizer in self.optimizers]
        try:
            found = [one["type"] for one in kept]
            if found != names:
                raise ValueError(f"it is of {', '.join(found)}, but the run uses {', '.join(names)}")
            for optimizer, one in zip(self.optimizers, kept, strict=True):
                state = {name: _unpack(value, tensors) for name, value in one.items() if name != "type"}
                _check_keys(optimizer, state)
                _match_memory(optimizer, state["state"])
                optimizer.load_state_dict(state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(f"{where} has the state of another optimiser than run.json says ({error})") from error


def parts_of(tensors: dict[str, Tensor], facts: dict[str, Any], where: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint, grouped as "network", "average", "optimizer" and "totals".

    Args:
        tensors, facts: content of the file.
        where: name of the file for messages.

    Raises:
        ValueError: the file is of another version of spikerate, or has impossible content.
    """
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}, "totals": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    if len(parts) != 4 or {"epoch", "step", "rows", "found", "optimizers"} != facts.keys() - {"spent"}:  # which came later
        raise ValueError(f"{where} is of another version of spikerate, or contains weights only")
    told = (*(facts[name] for name in ("epoch", "step", "rows", "found")), facts.get("spent", {}))
    impossible = _impossible(parts["totals"], *told)
    if impossible:
        raise ValueError(f"{where} has impossible content, so it was altered: {impossible}")
    return parts


def _impossible(totals: dict[str, Tensor], epoch: Any, step: Any, rows: Any, found: Any, spent: Any) -> str:
    """A phrase for content that no training can have written into a checkpoint; "" if there is none."""
    for name, value in (("epoch", epoch), ("step", step)):
        if type(value) is not int or value < 0:
            return f"{name} is {value!r:.40}"
    if not isinstance(rows, list) or len(rows) != epoch:
        return f"after epoch {epoch} it has no {epoch} rows"
    for k, row in enumerate(rows, 1):
        if not isinstance(row, dict) or row.get("epoch") != k or not {"lr", "loss", "seconds"} <= row.keys():
            return f"row {k} is not that of epoch {k}"
        for name, value in row.items():
            by_layer = name == "firing_rates"
            if isinstance(value, dict) != by_layer or not all(map(is_number, value.values() if by_layer else [value])):
                return f"{name} of epoch {k} is {value!r:.40}"
    if not isinstance(found, dict) or not all(map(is_number, found.values())):
        return f"the result of the temperature search is {found!r:.40}"
    if not isinstance(spent, dict) or not all(map(is_number, spent.values())):
        return f"the time that was spent is {spent!r:.40}"
    if bool(totals) != bool(step):
        return f"after {step} steps it has sums of {len(totals)} terms"
    for name, total in totals.items():
        if total.dim() or not total.is_floating_point() or not total.isfinite():
            return f"the sum of {name} is not a finite number"
    return ""


def is_number(value: Any) -> bool:
    """Whether the value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def _pack(value: Any, name: str, tensors: dict[str, Tensor], texts: bool) -> Any:
    """A value as JSON types; its tensors are moved to `tensors`, under names that begin with `name`.

    Args:
        texts: whether it may contain strings; torch's `load_state_dict` damages strings in the state of a parameter.

    Raises:
        ValueError: it contains something that a file can't store.
    """
    match value:
        case Tensor():
            tensors[name] = value
            return {"tensor": name}
        case dict():
            return {"dict": [[key, _pack(v, f"{name}.{key}", tensors, texts)] for key, v in value.items()]}
        case tuple():
            return {"tuple": [_pack(v, f"{name}.{k}", tensors, texts) for k, v in enumerate(value)]}
        case list():
            return [_pack(v, f"{name}.{k}", tensors, texts) for k, v in enumerate(value)]
        case None | bool() | int() | float():
            return value
        case str() if texts:
            return value
    raise ValueError(f"the optimiser's state has {name}, of type {type(value).__name__}, which a checkpoint can't store")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_pack`."""
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": pairs}:
            return {key: _unpack(v, tensors) for key, v in pairs}
        case {"tuple": values}:
            return tuple(_unpack(v, tensors) for v in values)
        case list():
            return [_unpack(v, tensors) for v in value]
    return value


def _check_keys(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise `ValueError` unless the groups in a state match those of the optimiser."""
    own, saved = optimizer.param_groups, state["param_groups"]
    if [group.keys() for group in own] != [group.keys() for group in saved]:
        raise ValueError("its parameter groups have other settings")


def _match_memory(optimizer: torch.optim.Optimizer, state: dict[int, Any]) -> None:
    """Bring tensors to the memory format of the parameter of their shape; otherwise the optimiser takes its slow path."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for k, entries in state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameters[k].shape:
                entries[name] = torch.empty_like(parameters[k], dtype=value.dtype, requires_grad=False).copy_(value)


def inherit_weights(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load parameters and buffers of the previous round; temperatures of surrogates stay if it was an ANN, which has none.

    Raises:
        ValueError: they are of another network.
    """
    own = {name: value for name, value in network.state_dict().items() if name.endswith("surrogate.temperature")}
    load_weights(network, own | weights, where)


def load_weights(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load parameters and buffers into a network.

    Raises:
        ValueError: they are of another network.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip()
        raise ValueError(f"{where} is of another network than run.json says: {detail}") from error
