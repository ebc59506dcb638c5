"""Trained weights as the initial weights of a new run, possibly with other settings or classes (`--init`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spikerate.models import Branched, body_of
from spikerate.runs.record import RunFolder
from spikerate.runs.trained import Card, read_trained
from spikerate.system.codec import Own
from spikerate.system.files import digest


@dataclass(frozen=True, eq=False)
class Start:
    """Initial weights for a new run: the best weights of another run, or those of an exported file.

    Parts of the new network without matching weights keep their initialisation from the seed: the classifiers of network
    and branches if the classes differ, the branches if there are none or others, the temperatures of surrogates if there
    are none.

    Attributes:
        path: the run folder or the file.
        trained_on: names of the classes that the weights were trained on, in order.
        weights: name in the network without branches, or in `branches` -> weights.
        classes: names of the classes of the new run.
    """

    path: Path
    trained_on: tuple[str, ...]
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, own: Own = Own()) -> Start:
        """The weights of a run folder, or of a .safetensors file of `spikerate export`.

        Args:
            own: the user's own code that the network may have.

        Raises:
            ValueError: as `read_trained`, or a weight is not finite.
        """
        if path.is_dir():
            folder = RunFolder.open(path, own)
            card, (found, _) = Card.of_run(folder.record()), folder.weights("best")
        else:
            trained = read_trained(path, own=own)
            card, found = trained.card, trained.network.state_dict()
        weights = {name.removeprefix("body."): value for name, value in found.items()}
        for name, value in weights.items():
            if not value.isfinite().all():
                raise ValueError(f"{path} has weights that are not finite, in {name}: give others")
        return cls(path, card.classes, weights, card.classes)

    @classmethod
    def again(cls, record: Any, given: Path | None = None, own: Own = Own()) -> Start:
        """The same weights that a run started from.

        Args:
            record: the entry `init` in the record of that run.
            given: where the weights are now; by default where they were.
            own: as for `read`.

        Raises:
            ValueError: as `read`, or the weights are not the same.
        """
        try:
            path, sha256 = given or Path(record["path"]), str(record["sha256"])
        except (KeyError, TypeError) as error:
            raise ValueError("the entry init of run.json does not name the weights that the run started from") from error
        wanted = f"give the weights of sha256 {sha256[:16]}, which the run started from, by --init"
        if not path.exists():
            raise ValueError(f"{path} does not exist any more: {wanted}")
        start = cls.read(path, own)
        if start.sha256 != sha256:
            raise ValueError(f"{path} has other weights than before: {wanted}")
        return start

    @property
    def sha256(self) -> str:
        """The SHA-256 of names and values of all weights."""
        return digest(self.weights)

    def onto(self, classes: Sequence[str]) -> Start:
        """The same weights for a run with these classes."""
        return replace(self, classes=tuple(classes))

    def record(self, network: nn.Module) -> dict[str, Any]:
        """The entry `init` of `run.json`, as JSON types.

        Raises:
            ValueError: as `hand_on`.
        """
        _, fresh = self._parted(network)
        return {"path": str(self.path.absolute()), "sha256": self.sha256, "fresh": fresh}

    def hand_on(self, network: nn.Module) -> None:
        """Load the weights into the network of the new run.

        Raises:
            ValueError: the network has other layers.
        """
        taken, _ = self._parted(network)
        network.load_state_dict(taken, strict=False)

    def _parted(self, network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """The weights that the network takes, by its own names, and the parts that keep their initialisation."""
        body, branches = body_of(network), network.branches if isinstance(network, Branched) else nn.ModuleDict()
        prefix = "body." if isinstance(network, Branched) else ""
        known = {name: value for name, value in self.weights.items() if not name.startswith("branches.")}
        drawn = self._drawn(body, [body])
        own = {name: value for name, value in body.state_dict().items() if name not in drawn}
        without = sorted(name for name in own if name.endswith("surrogate.temperature") and name not in known)
        for name, value in own.items():
            if name not in without and (name not in known or known[name].shape != value.shape):
                shape = tuple(known[name].shape) if name in known else "missing"
                raise ValueError(f"{self.path} is of another network: {name} is {shape}, and here {tuple(value.shape)}")
        unused = known.keys() - body.state_dict().keys()
        unused = {name for name in unused if not name.endswith("surrogate.temperature")}
        if unused:
            raise ValueError(f"{self.path} is of another network: it has {min(unused)}, which this network does not have")
        taken = {f"{prefix}{name}": known[name] for name in own if name not in without}
        branch_state = {f"branches.{name}": value for name, value in branches.state_dict().items()}
        last = {f"branches.{name}" for name in self._drawn(branches, branches.children())}
        theirs = {name: self.weights.get(name) for name in branch_state if name not in last}
        same = all(w is not None and w.shape == branch_state[name].shape for name, w in theirs.items())
        if same:
            taken |= {name: w for name, w in theirs.items() if w is not None}
        fresh = {"classifier": drawn, "branches": branch_state and not same, "temperatures": without}
        return taken, [part for part, names in fresh.items() if names]

    def _drawn(self, whole: nn.Module, parts: Any) -> set[str]:
        """Names in `whole` of the weights of its parts' last layers, if the classes differ; otherwise none."""
        if self.classes == self.trained_on:
            return set()
        names = {module: name for name, module in whole.named_modules()}
        linear = [[module for module in part.modules() if isinstance(module, nn.Linear)] for part in parts]
        if not all(linear):
            raise ValueError(
                f"the classes of {self.path} are others, and the network ends in no nn.Linear that could be fresh"
            )
        last = [layers[-1] for layers in linear]
        return {f"{names[module]}.{name}" for module in last for name in module.state_dict()}
