"""A run is a folder: `run.json`, `metrics.jsonl`, checkpoints and results, each written whole or not at all."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from spikerate.runs.config import Run, decode, encode, upgraded
from spikerate.runs.state import Row, State, inherit_weights, load_weights
from spikerate.system.files import is_leftover, pack_tensors, read_tensors, write_json, write_whole

FORMAT = 1


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    `run.json`: configuration and reproducibility card. `metrics.jsonl`: a line for each epoch. `last.safetensors`: the
    state, from which the run goes on; the other files follow from it. `best.safetensors`: the weights of the epoch with
    the highest held-out accuracy. `result.json`: what the evaluation gave; `examples.safetensors`: a few test samples and
    their spikes. Rounds before the run's own have such folders of their own inside: `round1-ann`, `round2-T6`, ...
    """

    path: Path

    @classmethod
    def create(cls, path: Path, run: Run, about: Mapping[str, Any]) -> RunFolder:
        """Make the folder and write `run.json`.

        Args:
            about: further entries of `run.json`, as JSON types.

        Raises:
            ValueError: there is something in the folder already, or it can't be written.
        """
        check_free(path)
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "run.json", {"format": FORMAT, "run": encode(run), **about})
        except OSError as error:
            raise ValueError(f"the run folder {path} can't be written: {error.strerror}; choose another by --out") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A folder that holds a run.

        Raises:
            ValueError: it holds none.
        """
        if not (path / "run.json").is_file():
            raise ValueError(f"{path} holds no run (no run.json): give the folder that spikerate train has printed")
        return cls(path)

    @property
    def stands(self) -> Literal["", "begun", "finished"]:
        """How far the run is; "" where there is none yet."""
        if (self.path / "result.json").is_file():
            return "finished"
        return "begun" if (self.path / "run.json").is_file() else ""

    def rounds(self, run: Run) -> list[tuple[Run, RunFolder]]:
        """The rounds of `run` in order, each with its folder: one inside this, and for the last this one itself."""
        names = (f"round{k}-{f'T{of.T}' if of.T else 'ann'}" for k, of in enumerate(run.before, 1))
        return list(zip(run.rounds, (*(RunFolder(self.path / name) for name in names), self), strict=True))

    def about(self) -> dict[str, Any]:
        """The content of `run.json`.

        Raises:
            ValueError: it is broken, or of another format.
        """
        file = self.path / "run.json"
        (record,) = _records(file)
        if record.get("format") != FORMAT:
            raise ValueError(f"{file} is not of format {FORMAT}: it was written by another version of spikerate")
        for entry in ("data", "environment"):
            if not isinstance(record.setdefault(entry, {}), dict):
                raise ValueError(f"{file} has an entry {entry} that is no record: it was altered")
        return record

    def config(self) -> Run:
        """The configuration.

        Raises:
            ValueError: `run.json` is broken, or of another format.
        """
        record = self.about()
        try:
            return decode(Run, upgraded(record.get("run")))
        except ValueError as error:
            raise ValueError(f"{self.path / 'run.json'}: {error}") from error

    def amend(self, **entries: Any) -> None:
        """Add entries to `run.json`, as JSON types."""
        write_json(self.path / "run.json", self.about() | entries)

    def metrics(self) -> list[Row]:
        """The lines of `metrics.jsonl`.

        Raises:
            ValueError: it is missing or broken.
        """
        return _records(self.path / "metrics.jsonl", lines=True)

    def result(self) -> dict[str, Any]:
        """The content of `result.json`; empty where the run is not finished.

        Raises:
            ValueError: it is broken.
        """
        file = self.path / "result.json"
        return _records(file)[0] if file.is_file() else {}

    @property
    def has_state(self) -> bool:
        """Whether there is a checkpoint."""
        return (self.path / "last.safetensors").is_file()

    @property
    def has_epochs(self) -> bool:
        """Whether an epoch is finished, so that there are metrics."""
        return (self.path / "metrics.jsonl").is_file()

    def save(self, state: State) -> None:
        """Write the checkpoint; after an epoch, also the metrics, and the weights where they are the best so far.

        Raises:
            SaveError: something can't be written. The checkpoint before is intact; where there was no room for this one,
                it lies in a temporary folder that the sentence names.
        """
        content = pack_tensors(state.tensors(), state.facts())
        try:
            write_whole(self.path / "last.safetensors", content)
        except OSError as error:
            raise SaveError(f"{self._unwritable(error)}; {self._rescue(content)}") from error
        try:
            self.publish(state)
        except OSError as error:
            raise SaveError(
                f"{self._unwritable(error)}; the checkpoint is whole: make room, and {self._resume()}"
            ) from error

    def publish(self, state: State) -> None:
        """Write what follows from a state at the end of an epoch; after a resume again, the run may have died before."""
        if state.step or not state.rows:
            return
        write_whole(self.path / "metrics.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in state.rows))
        if state.best is state.rows[-1]:
            self.save_weights("best", state.trained, state.best)

    def restore(self, state: State) -> None:
        """Take the state of the checkpoint.

        Raises:
            ValueError: it is broken, or of another network.
        """
        tensors, facts = read_tensors(self.path / "last.safetensors")
        state.restore(tensors, facts, str(self.path / "last.safetensors"))

    def save_state(self, name: str, state: State) -> Path:
        """Write a state for inspection to `NAME.safetensors`."""
        file = self.path / f"{name}.safetensors"
        write_whole(file, pack_tensors(state.tensors(), state.facts()))
        return file

    def save_weights(self, name: str, network: nn.Module, facts: Mapping[str, Any]) -> None:
        """Write parameters and buffers to `NAME.safetensors`."""
        weights: dict[str, Tensor] = {f"network.{key}": value for key, value in network.state_dict().items()}
        write_whole(self.path / f"{name}.safetensors", pack_tensors(weights, facts))

    def load_weights(self, name: str, network: nn.Module) -> None:
        """Read parameters and buffers from `NAME.safetensors`.

        Raises:
            ValueError: the file is missing or broken, or is of another network.
        """
        load_weights(network, *self._weights(name))

    def hand_on(self, network: nn.Module) -> None:
        """Give the best weights to the network of the next round.

        Raises:
            ValueError: they are missing or broken, or of a network of another shape.
        """
        inherit_weights(network, *self._weights("best"))

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        write_json(self.path / "result.json", result)

    def _weights(self, name: str) -> tuple[dict[str, Tensor], str]:
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"{file} is not there: the run has not finished its first epoch, or it was removed")
        tensors, _ = read_tensors(file)
        # A state has the network and, where the run has one, the average of its weights, which is what counts then.
        prefix = "average." if any(name.startswith("average.") for name in tensors) else "network."
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, str(file)

    def _unwritable(self, error: OSError) -> str:
        return f"the run folder {self.path} can't be written ({error.strerror})"

    def _resume(self) -> str:
        return f"go on by: spikerate train --resume {shlex.quote(str(self.path))}"

    def _rescue(self, content: bytes) -> str:
        try:
            file = Path(tempfile.mkdtemp(prefix="spikerate-")) / "last.safetensors"
            write_whole(file, content)
        except OSError:
            return f"the checkpoint before is whole: make room, and {self._resume()}"
        move = f"mv {shlex.quote(str(file))} {shlex.quote(str(self.path))}"
        return f"the state of the run is saved in {file}: make room, {move}, and {self._resume()}"


class SaveError(Exception):
    """A checkpoint could not be written where it belongs."""


def _records(file: Path, lines: bool = False) -> list[dict[str, Any]]:
    """The JSON object of a file, or that of each of its lines."""
    try:
        text = file.read_text()
        records = [json.loads(part) for part in (text.splitlines() if lines else [text])]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} can't be read as JSON: {error}") from error
    for record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{file} holds a {type(record).__name__}, and no record: it was altered")
    return records


def check_free(path: Path) -> None:
    """Raise `ValueError` unless a run can be put into `path`: a new or an empty folder."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a folder by --out")
    if path.is_dir() and not all(is_leftover(file) for file in path.iterdir()):
        if (path / "run.json").exists():
            raise ValueError(
                f"the folder {path} holds another run already: choose another by --out, "
                f"or continue that one by spikerate train --resume {shlex.quote(str(path))}"
            )
        raise ValueError(f"the folder {path} holds something else already: choose another by --out, or remove it")


def compare(then: Sequence[Row], now: Sequence[Row]) -> dict[str, tuple[Any, Any, Any]]:
    """Metric -> epoch and values of two runs where they differ first; times are left out."""
    differing: dict[str, tuple[Any, Any, Any]] = {}
    for one, other in zip(then, now, strict=False):
        for name in sorted((one.keys() | other.keys()) - {"seconds", "search_seconds"}):
            if one.get(name) != other.get(name):
                differing.setdefault(name, (one["epoch"], one.get(name), other.get(name)))
    return differing
