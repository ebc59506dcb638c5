"""Trained weights as the start of a new run, of other settings or of other classes."""

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
    """The best weights of a run, or those of an exported file, and the classes that the new run has.

    What the new run has no weights for stays as it is drawn from its seed: the classifiers of network and branches where
    the classes are others, the branches where there are none or others, the temperatures of surrogates that have none.

    Attributes:
        path: of the run folder or the file.
        trained_on: names of the classes, in order.
        weights: name in the network without branches, or in `branches`.
        classes: of the new run.
    """

    path: Path
    trained_on: tuple[str, ...]
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path, own: Own = Own()) -> Start:
        """The weights of a run folder or of what `spikerate export` wrote to a .safetensors file.

        Args:
            own: the code of the user's own that the network may have.

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
        """The weights that the `record` of a run tells of, wherever they lie now.

        Args:
            given: where; by default where they were.
            own: as for `read`.

        Raises:
            ValueError: as `read`, or they are not the same; the sentence asks for them.
        """
        try:
            path, sha256 = given or Path(record["path"]), str(record["sha256"])
        except (KeyError, TypeError) as error:
            raise ValueError("the entry init of run.json does not say which weights the run started from") from error
        wanted = f"give the weights of sha256 {sha256[:16]}, which the run started from, by --init"
        if not path.exists():
            raise ValueError(f"{path} is not there any more: {wanted}")
        start = cls.read(path, own)
        if start.sha256 != sha256:
            raise ValueError(f"{path} has other weights than then: {wanted}")
        return start

    @property
    def sha256(self) -> str:
        """Of names and values of all weights."""
        return digest(self.weights)

    def onto(self, classes: Sequence[str]) -> Start:
        """The same for a run of these classes."""
        return replace(self, classes=tuple(classes))

    def record(self, network: nn.Module) -> dict[str, Any]:
        """What `run.json` tells of the start, as JSON types.

        Raises:
            ValueError: as `hand_on`.
        """
        _, fresh = self._parted(network)
        return {"path": str(self.path.absolute()), "sha256": self.sha256, "fresh": fresh}

    def hand_on(self, network: nn.Module) -> None:
        """Give the weights to the network of the new run, in place.

        Raises:
            ValueError: it has other layers.
        """
        taken, _ = self._parted(network)
        network.load_state_dict(taken, strict=False)

    def _parted(self, network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """What the network takes, by its own names, and what stays fresh."""
        body, branches = body_of(network), network.branches if isinstance(network, Branched) else nn.ModuleDict()
        prefix = "body." if isinstance(network, Branched) else ""
        known = {name: value for name, value in self.weights.items() if not name.startswith("branches.")}
        drawn = self._drawn(body, [body])
        own = {name: value for name, value in body.state_dict().items() if name not in drawn}
        without = sorted(name for name in own if name.endswith("surrogate.temperature") and name not in known)
        for name, value in own.items():
            if name not in without and (name not in known or known[name].shape != value.shape):
                there = tuple(known[name].shape) if name in known else "not there"
                raise ValueError(f"{self.path} is of another network: {name} is {there}, and here {tuple(value.shape)}")
        over = known.keys() - body.state_dict().keys()
        over = {name for name in over if not name.endswith("surrogate.temperature")}
        if over:
            raise ValueError(f"{self.path} is of another network: it has {min(over)}, which is not here")
        taken = {f"{prefix}{name}": known[name] for name in own if name not in without}
        of_branches = {f"branches.{name}": value for name, value in branches.state_dict().items()}
        last = {f"branches.{name}" for name in self._drawn(branches, branches.children())}
        theirs = {name: self.weights.get(name) for name in of_branches if name not in last}
        same = all(w is not None and w.shape == of_branches[name].shape for name, w in theirs.items())
        if same:
            taken |= {name: w for name, w in theirs.items() if w is not None}
        fresh = {"classifier": drawn, "branches": of_branches and not same, "temperatures": without}
        return taken, [part for part, names in fresh.items() if names]

    def _drawn(self, whole: nn.Module, parts: Any) -> set[str]:
        """Names in `whole` of the last layers of its parts, where these are for other classes."""
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
