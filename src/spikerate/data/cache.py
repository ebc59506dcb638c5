"""A cache on disk for frames and decoded images: made once for each key, written completely or not at all, checksummed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from torch import Tensor

from spikerate.system.files import is_there, locked, open_plain, parse_json, read_text, write_json
from spikerate.system.progress import Track

_CHUNK = 2**24
_SECONDS = 60
"""An unfinished cache to which nothing was added for so long counts as abandoned."""
_MADE_BY = 2
"""Version of the code that makes rows. Raise it with every change of decoding, frames or the simulated camera."""


@dataclass(frozen=True, eq=False)
class Cached:
    """The content of a cache.

    Attributes:
        rows: [N, ...], memory-mapped from the file.
        broken: index of an item -> why it has no row.
        sha256: checksum of the rows.
    """

    rows: Tensor
    broken: dict[int, str]
    sha256: str


def cached(
    folder: Path | None,
    name: str,
    key: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: type[np.generic],
    make: Callable[[], Iterator[Tensor | str]],
    skip: bool,
    track: Track,
) -> Cached:
    """The rows for that key, from the cache or made now.

    Args:
        folder: where caches are kept; by default the user's cache folder.
        name: of the data set, the beginning of the cache's name.
        key: everything that the rows depend on, as JSON types.
        shape: shape of a row.
        dtype: type of its elements.
        make: yields the rows in order, or for a broken item a sentence that says why.
        skip: whether broken items may be left out.
        track: shows the progress.

    Raises:
        ValueError: an item is broken, the cache is damaged, or it can't be written.
    """
    text = json.dumps({"made_by": _MADE_BY, "shape": shape, "dtype": np.dtype(dtype).str, **key}, sort_keys=True)
    place = (folder or Path(pooch.os_cache("spikerate"))) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not place.is_dir():
        try:
            _write(place, text, make, skip)
        except OSError as error:
            raise ValueError(
                f"the cache {place} can't be written ({error.strerror}): make room, or choose another place by --data.cache"
            ) from error
    found = _read(place, text, shape, dtype, track)
    for reason in found.broken.values():
        _stop_unless(skip, reason)
    return found


def stamp(file: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds, by which a cache knows its sources; -1 without a file."""
    try:
        found = file.stat()
    except OSError:  # a broken link, for instance; reading the file reports it
        return -1, -1
    return found.st_size, found.st_mtime_ns


def keeps_caches(folder: Path) -> bool:
    """Whether the folder contains a cache. A run.json from somebody else can name any folder; only such a one is trusted."""
    try:
        return any(
            is_there(entry / "facts.json") and is_there(entry / "rows") and not entry.is_symlink()
            for entry in folder.iterdir()
        )
    except OSError:
        return False


def _stop_unless(skip: bool, reason: str) -> None:
    if not skip:
        raise ValueError(f"{reason}; --data.broken skip leaves such files out")


def _write(place: Path, text: str, make: Callable[[], Iterator[Tensor | str]], skip: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(place)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
    try:
        broken: dict[int, str] = {}
        digest = hashlib.sha256()
        with locked(temporary / "rows"), (temporary / "rows").open("wb") as file:
            for k, row in enumerate(make()):
                if isinstance(row, str):
                    _stop_unless(skip, row)
                    broken[k] = row
                else:
                    raw = row.numpy().tobytes()
                    digest.update(raw)
                    file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        facts = {"key": text, "sha256": digest.hexdigest(), "broken": {str(k): reason for k, reason in broken.items()}}
        facts["check"] = _check(facts)
        write_json(temporary / "facts.json", facts)
        try:
            temporary.rename(place)
        except OSError:
            if not place.is_dir():  # another process may have been faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left(place: Path) -> None:
    """Remove unfinished copies of this cache that killed processes have left, which may be large."""
    for left in place.parent.glob(f".{place.name}-*"):
        try:
            if not left.is_symlink() and time.time() - (left / "rows").lstat().st_mtime > _SECONDS:
                with locked(left / "rows") as has_locks:
                    if has_locks:
                        shutil.rmtree(left)
        except (OSError, ValueError):  # another process is writing it, or it is not a cache
            continue


def _read(place: Path, text: str, shape: tuple[int, ...], dtype: type[np.generic], track: Track) -> Cached:
    rows, row_bytes = place / "rows", math.prod(shape) * np.dtype(dtype).itemsize
    try:
        facts = parse_json(read_text(place / "facts.json"))
        broken = {int(k): str(reason) for k, reason in facts["broken"].items()}
        whole = facts.pop("check") == _check(facts) and facts["key"] == text
        whole = whole and rows.stat().st_size % row_bytes == 0 and _sha256(rows, track) == facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"the cache {place} is damaged: remove it, and it will be made again")
    n = rows.stat().st_size // row_bytes
    if n == 0:
        return Cached(torch.empty(0, *shape), broken, facts["sha256"])
    mapped = np.memmap(rows, dtype, "c", shape=(n, *shape))  # copy on write: torch does not accept read-only memory
    return Cached(torch.from_numpy(mapped), broken, facts["sha256"])


def _check(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path, track: Track) -> str:
    digest = hashlib.sha256()
    with open_plain(file) as content:
        size = os.fstat(content.fileno()).st_size
        for part in track(iter(lambda: content.read(_CHUNK), b""), "checking the cache", -(-size // _CHUNK)):
            digest.update(part)
    return digest.hexdigest()
