"""CIFAR-10 in its official python layout."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikerate.data.images import Images, ImageSet, hold_out

_TRAIN = [f"data_batch_{k}" for k in range(1, 6)]
_TEST = ["test_batch"]
_PIXELS = 3 * 32 * 32
_LARGEST = 2**28
"""Bytes; the official files have 31 million."""


def cifar10(path: Path | None, held_out: int) -> ImageSet:
    """CIFAR-10 (Krizhevsky, 2009): 32 x 32, three channels, 10 classes.

    Args:
        path: the folder `cifar-10-batches-py`, or the one that holds it.
        held_out: how many training images to hold out.

    Raises:
        ValueError: the folder or a file is missing, or a file is not what it should be; the sentence names it.
    """
    folder = _find(path)
    missing = [name for name in [*_TRAIN, *_TEST, "batches.meta"] if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is incomplete: {', '.join(missing)} not there; unpack cifar-10-python.tar.gz again")
    checksums: dict[str, str] = {}
    meta = _load(folder / "batches.meta", checksums)
    names = meta.get(b"label_names")
    if not isinstance(names, list) or len(names) != 10 or not all(isinstance(n, bytes) for n in names):
        raise ValueError(f"{folder / 'batches.meta'} has no list of ten label names: it is no file of CIFAR-10")
    train, kept, split = hold_out(_images(folder, _TRAIN, checksums), held_out)
    return ImageSet(
        name="cifar10",
        train=train,
        held_out=kept,
        test=_images(folder, _TEST, checksums),
        classes=tuple(n.decode("ascii", "replace") for n in names),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        licence="research use, cite Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        checksums=checksums,
        split=split,
    )


def _find(path: Path | None) -> Path:
    if path is None:
        raise ValueError(
            "cifar10 needs its folder: give --data PATH, where cifar-10-python.tar.gz was unpacked "
            "(spikerate fetch cifar10 PATH gets it)"
        )
    if not path.is_dir():
        raise ValueError(f"the data folder {path} does not exist: give the folder of cifar-10-batches-py")
    inner = path / "cifar-10-batches-py"
    return inner if inner.is_dir() else path


def _images(folder: Path, names: list[str], checksums: dict[str, str]) -> Images:
    pixels, labels = [], []
    for name in names:
        file = folder / name
        batch = _load(file, checksums)
        data, label = batch.get(b"data"), batch.get(b"labels")
        if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == _PIXELS):
            raise ValueError(f"{file} has no array `data` of [N, {_PIXELS}] bytes: it is no file of CIFAR-10")
        if not isinstance(label, list) or len(label) != len(data) or len(data) == 0:
            raise ValueError(f"{file} has {len(data)} images, but not as many labels: fetch it again")
        for row, k in enumerate(label):
            if type(k) is not int or not 0 <= k < 10:
                raise ValueError(f"{file} has the label {k!r} at row {row}: labels are the numbers 0 to 9")
        pixels.append(data.reshape(-1, 3, 32, 32))
        labels += label
    return Images(torch.from_numpy(np.concatenate(pixels)), torch.tensor(labels))


def _load(file: Path, checksums: dict[str, str]) -> dict[Any, Any]:
    try:
        size = file.stat().st_size
        raw = file.read_bytes() if size <= _LARGEST else b""
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from error
    if size > _LARGEST:
        raise ValueError(f"{file} has {size:,} bytes, and no file of CIFAR-10 so many: fetch it again")
    checksums[file.name] = hashlib.sha256(raw).hexdigest()
    try:
        batch = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    except _Foreign as error:
        raise ValueError(f"{file} asks for {error}, which no file of CIFAR-10 does: don't trust it") from error
    except Exception as error:  # a broken pickle can raise anything
        raise ValueError(f"{file} is truncated or no pickle ({type(error).__name__}): fetch it again") from error
    if not isinstance(batch, dict):
        raise ValueError(f"{file} holds a {type(batch).__name__}, not a dictionary: it is no file of CIFAR-10")
    return batch


class _Foreign(Exception):
    pass


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays and plain containers, and nothing else: no other name is ever looked up."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): _no_array,
            ("numpy", "dtype"): _plain_dtype,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in known:
            raise _Foreign(f"{module}.{name}")
        return known[module, name]


def _no_array(*arguments: Any) -> Any:
    """Stands for the class as an argument; called itself, it could ask for any amount of memory."""
    raise _Foreign("an array of a size of its own")


def _empty_array(kind: Any, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """An array to be filled by its state; of no size, whatever the file asks for."""
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _plain_dtype(code: str, align: bool = False, copy: bool = False) -> np.dtype[Any]:
    if code not in ("u1", "|u1"):
        raise _Foreign(f"the array type {code}")
    return np.dtype(np.uint8)


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")
