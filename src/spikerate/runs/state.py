"""The state of a training run: all that its next step depends on."""

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
    """Network and optimisers, and how far the run has come.

    Random numbers need no place here: those of a step are drawn from a generator made of (seed, epoch, step), and the
    learning rate is a function of the step. The rules keep nothing between steps.

    Attributes:
        optimizers: new ones, whose groups have the highest learning rates; these are kept as `initial_lr`, torch's name.
        average: a copy of the network that follows its weights; None where the run has none.
        epoch: finished epochs.
        step: finished steps of the epoch after them.
        totals: sums of the terms over these steps.
        rows: of the finished epochs, as in `metrics.jsonl`.
        found: by the search before the epoch that is under way; what it set is in the network's buffers.
    """

    network: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: nn.Module | None = None
    epoch: int = 0
    step: int = 0
    totals: Terms = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    found: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    @property
    def trained(self) -> nn.Module:
        """The network that is looked at and kept as `best`: the average where there is one."""
        return self.network if self.average is None else self.average

    def set_lr(self, share: float) -> None:
        """Give every group of the optimisers that share of its highest learning rate."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share

    @property
    def best(self) -> Row:
        """The row of the epoch whose weights are `best`: the highest validation accuracy, and of equals the last."""
        return max(self.rows, key=lambda row: (row.get("validation", 0.0), row["epoch"]))

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers, those of the average, the optimisers' tensors and the totals, under names of their own."""
        kept = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        if self.average is not None:
            kept |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        return kept | self._optimizers()[1] | {f"totals.{name}": value for name, value in self.totals.items()}

    def facts(self) -> dict[str, Any]:
        """The rest, as JSON types."""
        counted = {"epoch": self.epoch, "step": self.step, "rows": self.rows, "found": self.found}
        return counted | {"optimizers": self._optimizers()[0]}

    def _optimizers(self) -> tuple[list[Any], dict[str, Tensor]]:
        """What the optimisers keep, and its tensors, by the names that they have in it."""
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
        """Take the state of a file, in place.

        Args:
            where: what to call the file in an error.

        Raises:
            ValueError: the file is of another network, optimiser or version of spikerate, or its facts can't be.
        """
        parts = parts_of(tensors, facts, where)
        load_weights(self.network, parts["network"], where)
        if self.average is not None:
            load_weights(self.average, parts["average"], where)
        self._restore_optimizers(facts["optimizers"], tensors, where)
        device = next(self.network.parameters()).device
        self.totals = {name: value.to(device) for name, value in parts["totals"].items()}
        self.epoch, self.step = facts["epoch"], facts["step"]
        self.rows, self.found = facts["rows"], facts["found"]

    def check_within(self, epochs: int, steps: int) -> None:
        """Raise `ValueError` where a run of so many epochs of so many steps can't have come so far."""
        if self.step >= steps or self.epoch > epochs or (self.epoch == epochs and self.step):
            raise ValueError(
                f"the checkpoint is after epoch {self.epoch} and {self.step} steps more, and the run has "
                f"{epochs} epochs of {steps} steps: it was altered"
            )

    def _restore_optimizers(self, kept: Any, tensors: dict[str, Tensor], where: str) -> None:
        names = [type(optimizer).__name__ for optimizer in self.optimizers]
        try:
            found = [one["type"] for one in kept]
            if found != names:
                raise ValueError(f"it is of {', '.join(found)}, and the run of {', '.join(names)}")
            for optimizer, one in zip(self.optimizers, kept, strict=True):
                state = {name: _unpack(value, tensors) for name, value in one.items() if name != "type"}
                _check_keys(optimizer, state)
                _match_memory(optimizer, state["state"])
                optimizer.load_state_dict(state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(f"{where} has the state of another optimiser than run.json says ({error})") from error


def parts_of(tensors: dict[str, Tensor], facts: dict[str, Any], where: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by what they are of, "network", "average", "optimizer" or "totals", and by name.

    Args:
        where: what to call the file in an error.

    Raises:
        ValueError: it is of another version of spikerate, or its facts can't be.
    """
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimizer": {}, "totals": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    if len(parts) != 4 or {"epoch", "step", "rows", "found", "optimizers"} != facts.keys():
        raise ValueError(f"{where} is of another version of spikerate, or holds weights only")
    impossible = _impossible(parts["totals"], *(facts[name] for name in ("epoch", "step", "rows", "found")))
    if impossible:
        raise ValueError(f"{where} tells what can't be, so it was altered: {impossible}")
    return parts


def _impossible(totals: dict[str, Tensor], epoch: Any, step: Any, rows: Any, found: Any) -> str:
    """What no training can have written into a checkpoint, in words; "" where all is well."""
    for name, value in (("epoch", epoch), ("step", step)):
        if type(value) is not int or value < 0:
            return f"{name} is {value!r:.40}"
    if not isinstance(rows, list) or len(rows) != epoch:
        return f"after epoch {epoch} it has no {epoch} rows"
    for k, row in enumerate(rows, 1):
        if not isinstance(row, dict) or row.get("epoch") != k or not {"lr", "loss", "seconds"} <= row.keys():
            return f"row {k} is none of epoch {k}"
        for name, value in row.items():
            of_layers = name == "firing_rates"
            if isinstance(value, dict) != of_layers or not all(map(is_number, value.values() if of_layers else [value])):
                return f"{name} of epoch {k} is {value!r:.40}"
    if not isinstance(found, dict) or not all(map(is_number, found.values())):
        return f"what a search found is {found!r:.40}"
    if bool(totals) != bool(step):
        return f"after {step} steps it has sums of {len(totals)} terms"
    for name, total in totals.items():
        if total.dim() or not total.is_floating_point() or not total.isfinite():
            return f"the sum of {name} is no finite number"
    return ""


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def _pack(value: Any, name: str, tensors: dict[str, Tensor], texts: bool) -> Any:
    """A value as JSON types, its tensors put aside under names that begin with `name`.

    Args:
        texts: whether there may be strings in it: torch's `load_state_dict` spoils those of a parameter's state.

    Raises:
        ValueError: there is something in it that a file can't hold.
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
    raise ValueError(f"the optimiser's state has {name}, of type {type(value).__name__}, which a checkpoint can't hold")


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
    """Raise `ValueError` where the groups of a state are not those of the optimiser."""
    own, saved = optimizer.param_groups, state["param_groups"]
    if [group.keys() for group in own] != [group.keys() for group in saved]:
        raise ValueError("the settings of its parameter groups are others")


def _match_memory(optimizer: torch.optim.Optimizer, state: dict[int, Any]) -> None:
    """Give each tensor of a parameter's shape that one's memory format, or the optimiser would take its slow path."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for k, of_one in state.items():
        for name, value in of_one.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameters[k].shape:
                of_one[name] = torch.empty_like(parameters[k], dtype=value.dtype, requires_grad=False).copy_(value)


def inherit_weights(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Parameters and buffers of the round before, by name, in place; an ANN has no surrogate that could have a temperature.

    Raises:
        ValueError: they are of another network.
    """
    own = {name: value for name, value in network.state_dict().items() if name.endswith("surrogate.temperature")}
    load_weights(network, own | weights, where)


def load_weights(network: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Parameters and buffers, in place.

    Raises:
        ValueError: they are of another network.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip()
        raise ValueError(f"{where} is of another network than run.json says: {detail}") from error
