"""Files that are written whole or not at all, and tensor files that say when they are broken."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: whatever happens, a reader sees the old content or the new one.

    Raises:
        OSError: it can't be written; the old content is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON types to a file as `write_whole` does; a list of numbers takes one line.

    Raises:
        OSError: it can't be written; the old content is as it was.
    """
    text = json.dumps(value, indent=2)  # in which a line never breaks within a string
    text = re.sub(r"\[\n([^][{}\"]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_whole(path, (text + "\n").encode())


def is_leftover(path: Path) -> bool:
    """Whether the file is what an interrupted `write_whole` leaves behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def pack_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file with `facts` (JSON types) and a checksum of everything in its header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    return safetensors.torch.save(plain, {"facts": text, "sha256": _digest(plain, text)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and facts of a file made by `pack_tensors`. No code of the file is run: it holds none.

    Raises:
        ValueError: the file is missing, truncated, altered, or of another kind; the sentence names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{path} can't be read ({error}): it is truncated, or no file of spikerate") from error
    if not {"facts", "sha256"} <= header.keys():
        raise ValueError(f"{path} has no checksum: it is no file of spikerate")
    if header["sha256"] != _digest(tensors, header["facts"]):
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    facts = json.loads(header["facts"])
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: its facts are no dictionary")
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """A rename is durable once its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
