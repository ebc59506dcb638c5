"""Files that are written whole or not at all, through no link, and tensor files that say when they are broken.

A folder may come from a stranger. A link in it could lead to any file of the user, a pipe or a device never end: none is
read or written through, and what is written first under another name gets one that nobody can have foreseen.
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
"""Bytes; more than the record of any run."""
_DEEPEST = 50
_TOO_DEEP = f"its lists and records stand inside each other more than {_DEEPEST} deep"
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
    """Whether there is anything of that name, be it a link that leads nowhere."""
    return os.path.lexists(path)


def open_plain(path: Path, mode: Literal["rb", "r+b", "ab"] = "rb") -> BinaryIO:
    """Open a file that is one itself; to write, it is made where it is not there.

    Raises:
        ValueError: it is a link, a folder, a pipe or a device.
        OSError: it is not there, or can't be opened.
    """
    if is_there(path):
        kind = _KINDS.get(stat.S_IFMT(path.lstat().st_mode))
        if kind is not None:
            raise ValueError(f"{path} is a {kind}, and no file: remove it, or put the file itself there")
    return os.fdopen(os.open(path, _FLAGS[mode] | _SAFE, 0o666), mode)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: as `open_plain`; or it is no text, or too large to be a record of spikerate's.
        OSError: as `open_plain`.
    """
    with open_plain(path) as file:
        content = file.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise ValueError(f"{path} is larger than {_LARGEST_TEXT >> 20} MiB: it was altered")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: it was altered") from error


def parse_json(text: str) -> Any:
    """The JSON types of a text.

    Raises:
        ValueError: it is no JSON, or lists and records in it stand inside each other deeper than spikerate writes any.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level = [value]
    for _ in range(_DEEPEST):
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [one for of in inner for one in of]
    if level:
        raise ValueError(_TOO_DEEP)
    return value


def inside(folder: Path, name: str) -> Path:
    """The folder of that name in a folder, there or not.

    Raises:
        ValueError: it is a link, which may lead out of the folder.
    """
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and nothing is written through one: put the folder itself there")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically and durably: whatever happens, a reader sees the old content or the new one.

    What is killed on the way leaves a temporary file, which `is_leftover` knows.

    Raises:
        OSError: it can't be written; the old content is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o666), "wb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)  # a link of that name is replaced, and not followed
        except BaseException:
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
    """Whether the file is what an interrupted `write_whole` leaves behind; a link never is."""
    return path.name.startswith(".") and path.name.endswith(".tmp") and stat.S_ISREG(path.lstat().st_mode)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of that file, which is made where it is not there and stays empty.

    The system releases the lock when the process ends, however it does, and its children don't hold it.

    Yields:
        whether the file system has locks.

    Raises:
        BlockingIOError: another process holds it.
        ValueError: as `open_plain`.
        OSError: the file can't be made.
    """
    with open_plain(path, "r+b") as file:
        try:
            # Not flock, which would be held on by the processes that read images, seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, os.strerror(error.errno), str(path)) from error
            yield False
        else:
            yield True


def pack_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file with `facts` (JSON types) and a checksum of everything in its header."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    return safetensors.torch.save(plain, {"facts": text, "sha256": digest(plain, text)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and facts of a file made by `pack_tensors`. No code of the file is run: it holds none.

    Raises:
        ValueError: the file is missing, truncated, altered, or of another kind; or as `open_plain`. The sentence names it.
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
        raise ValueError(f"{path} is no file of spikerate: its facts are no dictionary")
    return tensors, facts


def digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """The SHA-256 of names, types, shapes and values of tensors on the CPU, and of a text."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sync_folder(folder: Path) -> None:
    """A rename is durable once its folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
