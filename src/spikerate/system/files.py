"""Safe reading and writing: files are written completely or not at all, and tensor files carry a checksum.

A folder may come from somebody else. A link in it could point to any file of the user, and reading a pipe or a device might
never end. So none of these is read or written through, and temporary files have random names.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_LARGEST_TEXT = 2**28
"""Bytes; more than the record of any run has."""
_DEEPEST = 50
_TOO_DEEP = f"its lists and records are nested more than {_DEEPEST} deep"
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FLAGS = {"rb": os.O_RDONLY, "r+b": os.O_RDWR | os.O_CREAT, "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND}
_KINDS = {
    stat.S_IFLNK: "link",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def is_there(path: Path) -> bool:
    """Whether anything of that name exists, even a broken link."""
    return os.path.lexists(path)


def open_plain(path: Path, mode: Literal["rb", "r+b", "ab"] = "rb") -> BinaryIO:
    """Open a regular file; when opened for writing, it is created if it does not exist.

    Raises:
        ValueError: it is a link, a folder, a pipe, a socket or a device.
        OSError: it does not exist, or can't be opened.
    """
    if is_there(path):
        kind = _KINDS.get(stat.S_IFMT(path.lstat().st_mode))
        if kind is not None:
            raise ValueError(f"{path} is a {kind} and not a file: remove it, or put the file itself there")
    return os.fdopen(os.open(path, _FLAGS[mode] | _SAFE, 0o666), mode)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: as `open_plain`; or it is not text, or too large to be a record of spikerate.
        OSError: as `open_plain`.
    """
    with open_plain(path) as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise ValueError(f"{path} is larger than {_LARGEST_TEXT >> 20} MiB: it was altered")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: it was altered") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or is nested more deeply than anything that spikerate writes.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level = [value]
    for _ in range(_DEEPEST):
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [item for items in inner for item in items]
    if level:
        raise ValueError(_TOO_DEEP)
    return value


def inside(folder: Path, name: str) -> Path:
    """The path `folder / name`, whether it exists or not.

    Raises:
        ValueError: it is a link, which may lead out of the folder.
    """
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and spikerate does not write through links: put the folder itself there")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: whatever happens, a reader sees either the old content or the new one.

    A process that is killed meanwhile leaves a temporary file, which `is_leftover` recognises.

    Raises:
        OSError: it can't be written; the old content is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o666), "wb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # replaces a link of that name instead of following it
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON to a file as `write_whole` does, with each list of numbers on one line.

    Raises:
        OSError: it can't be written; the old content is unchanged.
    """
    text = json.dumps(value, indent=2)  # no string spans several lines in it
    text = re.sub(r"\[\n([^][{}\"]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_whole(path, (text + "\n").encode())


def is_leftover(path: Path) -> bool:
    """Whether the file is a leftover of an interrupted `write_whole`; a link never is."""
    return path.name.startswith(".") and path.name.endswith(".tmp") and stat.S_ISREG(path.lstat().st_mode)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock on that file, which is created empty if it does not exist.

    The system releases the lock when the process ends, in whatever way. Child processes don't hold it.

    Yields:
        whether the file system supports locks.

    Raises:
        BlockingIOError: another process holds the lock.
        ValueError: as `open_plain`.
        OSError: the file can't be created.
    """
    with open_plain(path, "r+b") as file:
        try:
            # Not flock: the worker processes that read images would keep it for seconds after this process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, os.strerror(error.errno), str(path)) from error
            yield False
        else:
            yield True


def pack_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file; its header has the `facts` (JSON types) and a checksum of the whole content."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    return safetensors.torch.save(plain, {"facts": text, "sha256": digest(plain, text)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the facts of a file made by `pack_tensors`. The format can't contain code.

    Raises:
        ValueError: the file is missing, truncated, altered or of another kind, or as `open_plain`. The message names it.
    """
    try:
        open_plain(path).close()
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{path} can't be read ({error}): it is truncated, or no file of spikerate") from error
    if not {"facts", "sha256"} <= header.keys():
        raise ValueError(f"{path} has no checksum: it is no file of spikerate")
    if header["sha256"] != digest(tensors, header["facts"]):
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    try:
        facts = parse_json(header["facts"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no file of spikerate: its facts can't be read as JSON") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is no file of spikerate: its facts are not a dictionary")
    return tensors, facts


def digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """The SHA-256 of a text and of the names, types, shapes and values of tensors on the CPU."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, which makes a rename in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
