"""A run is a folder: `run.json`, `metrics.jsonl`, weights and results, each written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from spikerate.config import Run, decode, encode

FORMAT = 1


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    `run.json`: configuration, environment, data, split and command. `metrics.jsonl`: a line for each epoch.
    `best.safetensors`, `last.safetensors`: the weights of the epoch with the highest held-out accuracy and of the last.
    `result.json`: what the evaluation gave.
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
            folder._write("run.json", _json({"format": FORMAT, "run": encode(run), **about}))
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

    def config(self) -> Run:
        """The configuration.

        Raises:
            ValueError: `run.json` is broken, or of another format.
        """
        file = self.path / "run.json"
        try:
            record = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} can't be read as JSON: {error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"{file} is not of format {FORMAT}: it was written by another version of spikerate")
        try:
            return decode(Run, record.get("run"))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def save_weights(self, name: str, network: nn.Module) -> None:
        """Write parameters and buffers to `NAME.safetensors`."""
        state: dict[str, Tensor] = {key: value.contiguous() for key, value in network.state_dict().items()}
        self._write(f"{name}.safetensors", safetensors.torch.save(state))

    def load_weights(self, name: str, network: nn.Module) -> None:
        """Read parameters and buffers from `NAME.safetensors`.

        Raises:
            ValueError: the file is missing or broken, or is of another network.
        """
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            raise ValueError(f"{file} is not there: the run has not finished its first epoch")
        try:
            state = safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(f"{file} is broken ({error}): train again") from error
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{file} is of another network than run.json says: {str(error).splitlines()[1].strip()}"
            ) from error

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self._write("result.json", _json(result))

    def _write(self, name: str, content: bytes) -> None:
        """Atomically: a reader sees the old file or the new one, whatever happens between."""
        temporary = self.path / f".{name}.tmp"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)


def check_free(path: Path) -> None:
    """Raise `ValueError` unless a run can be put into `path`: a new or an empty folder."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: give a folder by --out")
    if path.is_dir() and any(path.iterdir()):
        what = "another run" if (path / "run.json").exists() else "something else"
        raise ValueError(f"the folder {path} holds {what} already: choose another by --out, or remove it")


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
