"""The folder of a run: `run.json`, `metrics.jsonl`, checkpoints and results, each written completely or not at all."""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from spikerate.runs.config import Run, UnnamedNeuron
from spikerate.runs.state import Row, State, inherit_weights, is_number, load_weights, parts_of
from spikerate.system.codec import Own, decode, encode, named_again
from spikerate.system.environment import fingerprint
from spikerate.system.files import (
    inside,
    is_leftover,
    is_there,
    locked,
    pack_tensors,
    parse_json,
    read_tensors,
    read_text,
    write_json,
    write_whole,
)

FORMAT = 2
"""Version of the files. Since 2, the validation set is called so, and optimisers are parts of a chosen kind."""
RUN_FILE = "run.json"
"""The file by which a folder is recognised as that of a run."""
LOCK = ".lock"
"""The empty file that the process that writes into a run folder keeps locked."""
_LEFT = re.compile(r"\.(run\.json|result\.json|metrics\.jsonl|[\w-]+\.safetensors)(\.[0-9a-f]{16})?\.tmp")
"""Names of temporary files of a training. Those of a report are left alone, which another process may be writing."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    `run.json`: settings, data, software and hardware. `metrics.jsonl`: a line for each epoch. `last.safetensors`: the
    checkpoint, from which the run is resumed and the other files can be restored. `best.safetensors`: the weights of the
    epoch with the highest validation accuracy. `result.json`: the evaluation on the test set. `examples.safetensors`: a few
    test samples and their spikes. Earlier rounds have such folders inside: `round1-ann`, `round2-T6`, ...

    Attributes:
        path: the folder.
        own: the user's own code that the run may use.
    """

    path: Path
    own: Own = field(default=Own(), compare=False)

    @classmethod
    def create(cls, path: Path, run: Run, about: Mapping[str, Any]) -> RunFolder:
        """Make the folder and write `run.json`.

        Args:
            about: further entries of `run.json`, as JSON types.

        Raises:
            ValueError: the folder is not empty, or can't be written.
        """
        check_free(path)
        folder = cls(path, Own.of(run))
        try:
            path.mkdir(parents=True, exist_ok=True)
            settings = encode(run)
            card = {"format": FORMAT, "run": settings, "fingerprint": fingerprint(settings), "spiking": run.spiking}
            write_json(folder.run_file, card | dict(about))
        except OSError as error:
            raise ValueError(f"the run folder {path} can't be written: {error.strerror}; choose another by --out") from error
        return folder

    @classmethod
    def open(cls, path: Path, own: Own = Own()) -> RunFolder:
        """Open the folder of a run.

        Args:
            own: the user's own code that the run may name.

        Raises:
            ValueError: it does not contain a run, or its name is not UTF-8.
        """
        check_name(path)
        if not is_there(path / RUN_FILE):
            raise ValueError(f"{path} contains no run (no run.json): give the folder that spikerate train has printed")
        return cls(path, own)

    @property
    def run_file(self) -> Path:
        """Settings, data, software and hardware."""
        return self.path / RUN_FILE

    @property
    def metrics_file(self) -> Path:
        """The metrics, a line for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def result_file(self) -> Path:
        """The evaluation on the test set."""
        return self.path / "result.json"

    @property
    def state_file(self) -> Path:
        """The checkpoint."""
        return self.path / "last.safetensors"

    @property
    def examples_file(self) -> Path:
        """A few test samples and their spikes."""
        return self.path / "examples.safetensors"

    @property
    def stands(self) -> Literal["", "begun", "finished"]:
        """Whether the run has begun or is finished; "" if there is no run yet."""
        if is_there(self.result_file):
            return "finished"
        return "begun" if is_there(self.run_file) else ""

    def rounds(self, run: Run) -> list[tuple[Run, RunFolder]]:
        """The rounds of `run` in order, each with its folder: subfolders for earlier rounds, and this one for the last.

        Raises:
            ValueError: a folder is a link.
        """
        names = (f"round{k}-{f'T{earlier.T}' if earlier.T else 'ann'}" for k, earlier in enumerate(run.before, 1))
        return list(zip(run.rounds, (*(RunFolder(inside(self.path, name), self.own) for name in names), self), strict=True))

    def about(self) -> dict[str, Any]:
        """The content of `run.json`.

        Raises:
            ValueError: it is broken, or of another format.
        """
        file = self.run_file
        (record,) = _records(file)
        if record.get("format") != FORMAT:
            raise ValueError(f"{file} is not of format {FORMAT}: use the version of spikerate that wrote it")
        for entry in ("data", "environment"):
            if not isinstance(record.setdefault(entry, {}), dict):
                raise ValueError(f"{file} has an entry {entry} that is not a record: it was altered")
        _check_about(record, file)
        return record

    def record(self) -> Record:
        """The content of `run.json` and the settings in it, read once.

        Raises:
            ValueError: it is broken, or of another format, or names the user's own code that is not in `own`.
        """
        about = self.about()
        try:
            run: Run = decode(Run, about.get("run"), own=self.own)
            if isinstance(run.neuron, UnnamedNeuron):
                run = replace(run, neuron=replace(run.neuron, spiking=about.get("spiking", True)))
            return Record(self, about, run)
        except ValueError as error:
            raise ValueError(f"{self.run_file}: {error}") from error

    def config(self) -> Run:
        """The configuration.

        Raises:
            ValueError: `run.json` is broken, or of another format, or names the user's own code that is not in `own`.
        """
        return self.record().run

    def check_settings(self) -> None:
        """Raise `ValueError` unless the settings in `run.json` are those that the run began with."""
        if why := doubt(self.path, self.about()):
            again = f"spikerate train PRESET --init {shlex.quote(str(self.path))}"
            raise ValueError(f"{why}; restore them, or train further with other settings by {again}")

    def amend(self, **entries: Any) -> None:
        """Add entries to `run.json`, as JSON types."""
        write_json(self.run_file, self.about() | entries)

    def metrics(self) -> list[Row]:
        """The lines of `metrics.jsonl`.

        Raises:
            ValueError: it is missing or broken.
        """
        file = self.metrics_file
        rows = _records(file, lines=True)
        if not all(type(row.get("epoch")) is int for row in rows):
            raise ValueError(f"{file} has a line without an epoch: it was altered, or is of another version")
        return rows

    def rows(self) -> list[Row]:
        """The metrics of the finished epochs from the checkpoint; empty if there is none.

        Raises:
            ValueError: it is broken.
        """
        file = self.state_file
        if not self.has_state:
            return []
        tensors, facts = read_tensors(file)
        parts_of(tensors, facts, str(file))
        return list(facts["rows"])

    def result(self) -> dict[str, Any]:
        """The content of `result.json`; empty if the run is not finished.

        Raises:
            ValueError: it is broken, or lacks a number that every result has.
        """
        file = self.result_file
        if not is_there(file):
            return {}
        (record,) = _records(file)
        for name in ("validation_accuracy", "test_accuracy", "firing_rate"):
            value = record.get(name)
            if not (is_number(value) or (value is None and name == "validation_accuracy")):
                raise ValueError(f"{file} is no result ({name} is {value!r:.40}): it was altered, or is of another version")
        return record | {"validation_accuracy": record.get("validation_accuracy")}

    @property
    def has_state(self) -> bool:
        """Whether there is a checkpoint."""
        return is_there(self.state_file)

    @property
    def has_epochs(self) -> bool:
        """Whether at least one epoch is finished."""
        return is_there(self.metrics_file)

    def save(self, state: State) -> None:
        """Write the checkpoint; after an epoch also the metrics, and the weights if they are the best so far.

        Raises:
            SaveError: a file can't be written. The previous checkpoint is intact; if the new one could not be written to
                the folder, it is in a temporary folder that the message names.
        """
        content = pack_tensors(state.tensors(), state.facts())
        try:
            write_whole(self.state_file, content)
        except OSError as error:
            raise SaveError(f"{self._unwritable(error)}; {self._rescue(content)}") from error
        try:
            if not state.step:
                self.publish(state)
        except OSError as error:
            raise SaveError(
                f"{self._unwritable(error)}; the checkpoint is whole: make room, and {self._resume()}"
            ) from error

    def publish(self, state: State) -> None:
        """Write metrics and best weights from a state; also after a resume, since the run may have been killed before."""
        if not state.rows:
            return
        write_whole(self.metrics_file, b"".join(json.dumps(row).encode() + b"\n" for row in state.rows))
        if not state.step and state.best is state.rows[-1]:
            self.save_weights("best", state.trained, state.best)

    def restore(self, state: State) -> None:
        """Load the checkpoint into `state`.

        Raises:
            ValueError: the checkpoint is broken, or of another network.
        """
        tensors, facts = read_tensors(self.state_file)
        state.restore(tensors, facts, str(self.state_file))

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
        load_weights(network, *self.weights(name))

    def hand_on(self, network: nn.Module) -> None:
        """Load the best weights into the network of the next round.

        Raises:
            ValueError: the weights are missing or broken, or of a network of another shape.
        """
        inherit_weights(network, *self.weights("best"))

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        write_json(self.result_file, result)

    def weights(self, name: str) -> tuple[dict[str, Tensor], str]:
        """Parameters and buffers in `NAME.safetensors`, and the name of the file for messages.

        Raises:
            ValueError: the file is missing or broken.
        """
        file = self.path / f"{name}.safetensors"
        if not is_there(file):
            raise ValueError(f"{file} does not exist: the run has not finished its first epoch, or the file was removed")
        tensors, _ = read_tensors(file)
        # A checkpoint has the network's weights and perhaps their average, which is then the network to use.
        prefix = "average." if any(name.startswith("average.") for name in tensors) else "network."
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, str(file)

    def _unwritable(self, error: OSError) -> str:
        return f"the run folder {self.path} can't be written ({error.strerror})"

    def _resume(self) -> str:
        own = "".join(map(named_again, self.own.code.values()))
        return f"continue by: spikerate train --resume {shlex.quote(str(self.path))}{own}"

    def _rescue(self, content: bytes) -> str:
        try:
            file = Path(tempfile.mkdtemp(prefix="spikerate-")) / "last.safetensors"
            write_whole(file, content)
        except OSError:
            return f"the checkpoint before is whole: make room, and {self._resume()}"
        move = f"mv {shlex.quote(str(file))} {shlex.quote(str(self.path))}"
        return f"the state of the run is saved in {file}: make room, {move}, and {self._resume()}"


@dataclass(frozen=True)
class Record:
    """The content of `run.json`, which commands read once and pass on.

    Attributes:
        folder: the run folder.
        about: all entries, as JSON types.
        run: the settings.
    """

    folder: RunFolder
    about: Mapping[str, Any]
    run: Run

    @property
    def doubt(self) -> str:
        """Why the settings can't be trusted; "" if they are those that the run began with."""
        return doubt(self.folder.path, self.about)


@contextmanager
def sole_writer(path: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Hold the lock by which only one process writes into a run folder; the folder is created if it does not exist.

    Temporary files of a process that was killed are removed.

    Args:
        path: the folder.
        say: called with a message if the file system does not support locks.

    Raises:
        ValueError: another process writes there, or the folder can't be written.
    """
    with ExitStack() as held:
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not held.enter_context(locked(path / LOCK)):
                say(f"the file system of {path} has no locks: make sure that no other process writes into the folder")
            for file in path.iterdir():
                if _LEFT.fullmatch(file.name) and is_leftover(file):
                    file.unlink()
        except BlockingIOError as error:
            raise ValueError(f"another process is writing the run {path}: wait until it has ended, or stop it") from error
        except OSError as error:
            raise ValueError(f"the run folder {path} can't be written: {error.strerror}; choose another by --out") from error
        yield


def doubt(path: Path, about: Mapping[str, Any]) -> str:
    """Why the settings in the `run.json` of the folder `path`, whose content is `about`, can't be trusted; or ""."""
    if about.get("fingerprint") == fingerprint(about.get("run")):
        return ""
    return f"{path / RUN_FILE} was edited: its settings are not those that the run began with"


class SaveError(Exception):
    """A checkpoint could not be written to the run folder."""


def _records(file: Path, lines: bool = False) -> list[dict[str, Any]]:
    """The JSON object of a file, or that of each of its lines."""
    try:
        text = read_text(file)
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from error
    try:
        records = [parse_json(part) for part in (text.splitlines() if lines else [text])]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} can't be read as JSON: {error}") from error
    for record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{file} contains a {type(record).__name__} instead of a record: it was altered")
    return records


def _check_about(about: Mapping[str, Any], file: Path) -> None:
    """Raise `ValueError` if an entry of `run.json` has the wrong type; entries may be missing."""
    data, environment = about["data"], about["environment"]
    entries: tuple[tuple[str, Any, type], ...] = (
        *((name, about.get(name), str) for name in ("preset", "command", "repeats")),
        ("ranks", about.get("ranks"), int),
        ("spiking", about.get("spiking"), bool),
        ("source", about.get("source"), dict),
        ("init", about.get("init"), dict),
        ("resumed", about.get("resumed"), list),
        ("data.sizes", data.get("sizes"), dict),
        ("data.sha256", data.get("sha256"), dict),
        ("data.classes", data.get("classes"), list),
        ("data.skipped", data.get("skipped"), list),
        ("data.notes", data.get("notes"), list),
        ("environment.gpus", environment.get("gpus"), list),
        ("environment.packages", environment.get("packages"), dict),
    )
    for name, value, kind in entries:
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{file} has an entry {name} that is not of type {kind.__name__}: it was altered")


def check_name(path: Path) -> None:
    """Raise `ValueError` if the name of a run folder is not UTF-8, which reading tensor files requires."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError as error:
        name = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise ValueError(f"the name of the run folder {name} is not UTF-8: choose another") from error


def check_free(path: Path) -> None:
    """Raise `ValueError` unless `path` can be the folder of a new run: it does not exist or is empty, its name is UTF-8."""
    check_name(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a folder by --out")
    if path.is_dir() and not all(file.name == LOCK or is_leftover(file) for file in path.iterdir()):
        if is_there(path / RUN_FILE):
            raise ValueError(
                f"the folder {path} already contains another run: choose another by --out, "
                f"or continue that one by spikerate train --resume {shlex.quote(str(path))}"
            )
        raise ValueError(f"the folder {path} is not empty: choose another by --out, or remove it")


def compare(then: Sequence[Row], now: Sequence[Row]) -> dict[str, tuple[Any, Any, Any]]:
    """Metric -> first epoch in which two runs differ, and both values. Durations, "...seconds", are left out."""
    differing: dict[str, tuple[Any, Any, Any]] = {}
    for one, other in zip(then, now, strict=False):
        for name in sorted(one.keys() | other.keys()):
            if not name.endswith("seconds") and one.get(name) != other.get(name):
                differing.setdefault(name, (one["epoch"], one.get(name), other.get(name)))
    return differing
