"""The state of a training run: all that its next step depends on."""

from __future__ import annotations

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
            ValueError: the file is of another network, or of another version of spikerate.
        """
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "totals": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        if len(parts) != 3 or {"epoch", "step", "rows", "found"} != facts.keys():
            raise ValueError(f"{where} is of another version of spikerate, or holds weights only")
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
        self.epoch, self.step = int(facts["epoch"]), int(facts["step"])
        self.rows, self.found = list(facts["rows"]), dict(facts["found"])


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
