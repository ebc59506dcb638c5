"""HDF5 files from others: all that such a file contains is in it, each thing once. Needs the optional package h5py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading, once it is sure that it contains all its data itself.

    HDF5 allows links to other files, data sets whose values are in other files, and groups that contain themselves. With
    these, somebody else's file could bring another file of this machine into a network, or never end.

    Raises:
        ValueError: it is no file, or something in it is there twice, is elsewhere, or is far larger than the file.
        OSError: it is no HDF5 file, or truncated.
    """
    if not path.is_file():
        raise ValueError("the file does not exist, or it is a folder or a device")
    with h5py.File(path) as file:
        _check_inside(file, 2**28 + 100 * path.stat().st_size)
        yield file


def _check_inside(file: h5py.File, most: int) -> None:
    """Raise `ValueError` unless a file contains all its data itself, each once, and at most `most` bytes when unpacked."""
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    seen, size = set(), 0
    while groups:
        path, group = groups.pop()
        for name in group:
            place = f"{path}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{place} in it is a link to another place, which is not followed")
            found = group[name]
            if found.id in seen:
                raise ValueError(f"{place} in it also has another name: such a file has no loops")
            seen.add(found.id)
            if isinstance(found, h5py.Group):
                groups.append((place, found))
                continue
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
                raise ValueError(f"the values of {place} in it are in another file, which is not read")
            size += found.nbytes
            if size > most:
                raise ValueError(f"{place} in it unpacks to more than such a file should contain: {size:,} bytes in all")
