"""MNIST and Fashion-MNIST in their official idx files."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from spikerate.data.samples import DataSet, Stored, Units

_LARGEST = 2**28
"""Bytes; the largest official file has 47 million."""
_GZIP = b"\x1f\x8b"
_IMAGES, _LABELS = 0x0803, 0x0801
"""Magic numbers of a three-dimensional and of a one-dimensional array of bytes."""
_GARMENTS = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def mnist(path: Path) -> DataSet:
    """MNIST (LeCun, Cortes, Burges, 1998): 28 x 28, one channel, 10 classes.

    Args:
        path: the folder of `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and the same of `t10k`; also as `.gz`,
            and as `train-images.idx3-ubyte`, as some unpackers name it.

    Raises:
        ValueError: a file is missing, or not what it should be; the message names it.
    """
    licence = "CC BY-SA 3.0, LeCun, Cortes, Burges: The MNIST database of handwritten digits, 1998"
    return _read("mnist", path, tuple("0123456789"), Units((0.1307,), (0.3081,)), licence)


def fashion_mnist(path: Path) -> DataSet:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): 28 x 28, one channel, 10 classes; files as of `mnist`."""
    licence = "MIT, Zalando SE; Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017"
    return _read("fashion-mnist", path, _GARMENTS, Units((0.2860,), (0.3530,)), licence)


def _read(name: str, path: Path, classes: tuple[str, ...], units: Units, licence: str) -> DataSet:
    folder = path / name if (path / name).is_dir() else path
    checksums: dict[str, str] = {}
    train, test = (_part(folder, part, len(classes), checksums) for part in ("train", "t10k"))
    return DataSet(name, train, train[:0], test, classes, units, licence, checksums)


def _part(folder: Path, part: str, classes: int, checksums: dict[str, str]) -> Stored:
    file, images = _array(folder, f"{part}-images-idx3-ubyte", _IMAGES, checksums)
    of_labels, labels = _array(folder, f"{part}-labels-idx1-ubyte", _LABELS, checksums)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{file} has images of {images.shape[1]} x {images.shape[2]}, not 28 x 28: it is another file")
    if len(images) != len(labels) or len(labels) == 0:
        raise ValueError(f"{file} has {len(images)} images and {of_labels.name} {len(labels)} labels: fetch both again")
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{of_labels} has the label {labels[row]} at byte {8 + row}: labels are 0 to {classes - 1}")
    return Stored(torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.astype(np.int64)))


def _array(folder: Path, name: str, magic: int, checksums: dict[str, str]) -> tuple[Path, np.ndarray]:
    """The file of that name, compressed or not, and its array of bytes."""
    names = (name, name.replace("-idx", ".idx"))
    found = [file for n in names for file in (folder / n, folder / f"{n}.gz") if file.is_file()]
    if not found:
        raise ValueError(f"{folder} is incomplete: there is neither {name} nor {name}.gz")
    file = found[0]
    raw = _content(file)
    checksums[name] = hashlib.sha256(raw).hexdigest()
    if int.from_bytes(raw[:4], "little") == magic:
        raise ValueError(f"{file} has its numbers in little-endian order, where idx files are big-endian: fetch it again")
    if len(raw) < 4 or int.from_bytes(raw[:4], "big") != magic:
        raise ValueError(f"{file} does not begin with {magic:#010x}: it is not the idx file of that name, fetch it again")
    start = 4 + 4 * (magic & 0xFF)
    shape = tuple(int.from_bytes(raw[k : k + 4], "big") for k in range(4, start, 4))
    if len(raw) != start + math.prod(shape):
        raise ValueError(
            f"{file} says at byte 4 that it holds {' x '.join(map(str, shape))} bytes, but there are {len(raw) - start:,} "
            f"from byte {start} on: fetch it again"
        )
    return file, np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _content(file: Path) -> bytes:
    """The file's content, decompressed if need be: a browser may have decompressed it and kept the suffix `.gz`."""
    try:
        with file.open("rb") as stream:
            packed = stream.read(len(_GZIP)) == _GZIP
        with gzip.open(file) if packed else file.open("rb") as stream:
            raw = stream.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} can't be read ({error}): it is truncated or no such file, fetch it again") from error
    if len(raw) > _LARGEST:
        raise ValueError(f"{file} has more than {_LARGEST:,} bytes, and no official file so many: fetch it again")
    return raw
