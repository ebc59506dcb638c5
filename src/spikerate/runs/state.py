"""The state of a training run: all that its next step depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.losses import Terms

Row = dict[str, Any]


@dataclass
class State:
    """Network and optimiser, and how far the run has come.

    Random numbers need no place here: those of a step are drawn from a generator made of (seed, epoch, step), and the
    learning rate is a function of the step. The rules keep nothing between steps.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the epoch after them.
        totals: sums of the terms over these steps.
        rows: of the finished epochs, as in `metrics.jsonl`.
        found: by the search before the epoch that is under way; what it set is in the network's buffers.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    totals: Terms = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    found: Row = field(default_factory=dict)

    @property
    def best(self) -> Row:
        """The row of the epoch whose weights are `best`: the highest held-out accuracy, and of equals the last."""
        return max(self.rows, key=lambda row: (row.get("held_out", 0.0), row["epoch"]))

    def tensors(self) -> dict[str, Tensor]:
        """Weights, buffers, the optimiser's state and the totals, under names of their own."""
        kept = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            kept |= {f"optimizer.{name}.{key}": value for key, value in state.items() if value is not None}
        return kept | {f"totals.{name}": value for name, value in self.totals.items()}

    def facts(self) -> dict[str, Any]:
        """The rest, as JSON types."""
        return {"epoch": self.epoch, "step": self.step, "rows": self.rows, "found": self.found}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], where: str) -> None:
        """Take the state of a file, in place.

        Args:
            where: what to call the file in an error.

        Raises:
            ValueError: the file is of another network, or of another version of spikerate, or tells what can't be.
        """
        parts = parts_of(tensors, facts, where)
        load_weights(self.network, parts["network"], where)
        device = next(self.network.parameters()).device
        parameters = dict(self.network.named_parameters())
        self.optimizer.state.clear()
        for name, value in parts["optimizer"].items():
            parameter = parameters.get(name.rpartition(".")[0])
            if parameter is None or parameter.shape != value.shape:
                raise ValueError(f"{where} is of another network than run.json says: its optimiser has {name}")
            # In the parameter's memory format, or the optimiser would take its slow path.
            kept = torch.empty_like(parameter, requires_grad=False).copy_(value)
            self.optimizer.state[parameter][name.rpartition(".")[2]] = kept
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


def parts_of(tensors: dict[str, Tensor], facts: dict[str, Any], where: str) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by what they are of, "network", "optimizer" or "totals", and by name.

    Args:
        where: what to call the file in an error.

    Raises:
        ValueError: it is of another version of spikerate, or its facts can't be.
    """
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "totals": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    if len(parts) != 3 or {"epoch", "step", "rows", "found"} != facts.keys():
        raise ValueError(f"{where} is of another version of spikerate, or holds weights only")
    impossible = _impossible(parts["totals"], **facts)
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
