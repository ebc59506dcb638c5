"""CIFAR-10 and CIFAR-100 in their official python and binary layouts."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from spikerate.data.samples import DataSet, Stored, Units

_PIXELS = 3 * 32 * 32
_LARGEST = 2**28
"""Bytes; the largest official file has 154 million."""
_LICENCE = "research use, cite Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"


@dataclass(frozen=True)
class _Layout:
    """The files of one distribution (python or binary) of CIFAR-10 or CIFAR-100.

    Attributes:
        set: name of the data set in messages.
        folder: name of the folder in its archive.
        train, test: files with images and labels.
        names: file with the names of the classes.
        key: dictionary key of the labels in the python layout.
        names_key: dictionary key of the class names in the python layout.
        labels: in the binary layout, bytes before the pixels of a row, the last of which is the class; 0 for python.
        classes: K.
    """

    set: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    key: bytes
    names_key: bytes
    labels: int
    classes: int


_FIVE = tuple(f"data_batch_{k}" for k in range(1, 6))
_CIFAR10 = [
    _Layout("CIFAR-10", "cifar-10-batches-py", _FIVE, ("test_batch",), "batches.meta", b"labels", b"label_names", 0, 10),
    _Layout(
        "CIFAR-10",
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in _FIVE),
        ("test_batch.bin",),
        "batches.meta.txt",
        b"",
        b"",
        1,
        10,
    ),
]
_CIFAR100 = [
    _Layout("CIFAR-100", "cifar-100-python", ("train",), ("test",), "meta", b"fine_labels", b"fine_label_names", 0, 100),
    _Layout("CIFAR-100", "cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", b"", b"", 2, 100),
]


def cifar10(path: Path) -> DataSet:
    """CIFAR-10 (Krizhevsky, 2009): 32 x 32, three channels, 10 classes.

    Args:
        path: the folder of one of the two layouts, or its parent folder.

    Raises:
        ValueError: a file is missing, or not what it should be; the sentence names it.
    """
    return _read("cifar10", path, _CIFAR10, Units((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))


def cifar100(path: Path) -> DataSet:
    """CIFAR-100 (Krizhevsky, 2009) with its fine labels: 32 x 32, three channels, 100 classes; otherwise as `cifar10`."""
    return _read("cifar100", path, _CIFAR100, Units((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)))


def _read(name: str, path: Path, layouts: list[_Layout], units: Units) -> DataSet:
    layout, folder = _find(path, layouts)
    missing = [file for file in (*layout.train, *layout.test, layout.names) if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"{folder} is incomplete: {', '.join(missing)} not there; unpack the archive of {layout.set} again")
    checksums: dict[str, str] = {}
    classes = _classes(folder / layout.names, layout, checksums)
    train = _images(folder, layout.train, layout, checksums)
    return DataSet(
        name=name,
        train=train,
        validation=train[:0],
        test=_images(folder, layout.test, layout, checksums),
        classes=classes,
        units=units,
        licence=_LICENCE,
        checksums=checksums,
    )


def _find(path: Path, layouts: list[_Layout]) -> tuple[_Layout, Path]:
    """The layout whose files are in the folder or in a folder inside; by default the python layout."""
    for layout in layouts:
        for folder in (path / layout.folder, path):
            if (folder.name == layout.folder and folder.is_dir()) or any((folder / file).is_file() for file in layout.train):
                return layout, folder
    return layouts[0], path


def _classes(file: Path, layout: _Layout, checksums: dict[str, str]) -> tuple[str, ...]:
    names: Any
    if layout.labels:
        names = _content(file, layout, checksums).split()
    else:
        names = _unpickle(file, layout, checksums).get(layout.names_key)
    if not isinstance(names, list) or len(names) != layout.classes or not all(isinstance(n, bytes) for n in names):
        raise ValueError(f"{file} has no list of {layout.classes} label names: it is no file of {layout.set}")
    return tuple(n.decode("ascii", "replace") for n in names)


def _images(folder: Path, names: tuple[str, ...], layout: _Layout, checksums: dict[str, str]) -> Stored:
    read = _from_rows if layout.labels else _from_pickle
    parts = [read(folder / name, layout, checksums) for name in names]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Stored(torch.from_numpy(pixels), torch.from_numpy(labels))


def _from_pickle(file: Path, layout: _Layout, checksums: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(file, layout, checksums)
    data, labels = batch.get(b"data"), batch.get(layout.key)
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == _PIXELS):
        raise ValueError(f"{file} has no array `data` of [N, {_PIXELS}] bytes: it is no file of {layout.set}")
    if not isinstance(labels, list) or len(labels) != len(data) or len(data) == 0:
        raise ValueError(f"{file} has {len(data)} images, but not as many labels: fetch it again")
    for row, k in enumerate(labels):
        if type(k) is not int or not 0 <= k < layout.classes:
            raise ValueError(
                f"{file} has the label {_shown(k)} at row {row}: labels are the numbers 0 to {layout.classes - 1}"
            )
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _from_rows(file: Path, layout: _Layout, checksums: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    raw, size = _content(file, layout, checksums), layout.labels + _PIXELS
    whole = len(raw) // size * size
    if not raw or whole != len(raw):
        raise ValueError(
            f"{file} has {len(raw):,} bytes, no multiple of the {size} of a row: it ends within a row at byte {whole:,}, "
            "fetch it again"
        )
    rows = np.frombuffer(raw, np.uint8).reshape(-1, size)
    labels = rows[:, layout.labels - 1].astype(np.int64)
    wrong = np.flatnonzero(labels >= layout.classes)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{file} has the label {labels[row]} at byte {row * size + layout.labels - 1:,}: labels are the numbers 0 to "
            f"{layout.classes - 1}, so it is no file of {layout.set}"
        )
    return rows[:, layout.labels :].reshape(-1, 3, 32, 32).copy(), labels


def _content(file: Path, layout: _Layout, checksums: dict[str, str]) -> bytes:
    try:
        size = file.stat().st_size
        if size > _LARGEST:
            raise ValueError(f"{file} has {size:,} bytes, and no file of {layout.set} so many: fetch it again")
        raw = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from error
    checksums[file.name] = hashlib.sha256(raw).hexdigest()
    return raw


def _unpickle(file: Path, layout: _Layout, checksums: dict[str, str]) -> dict[Any, Any]:
    raw = _content(file, layout, checksums)
    try:
        batch = _ArraysOnly(raw).load()
    except _Foreign as error:
        raise ValueError(f"{file} asks for {error}, which no file of {layout.set} does: don't trust it") from error
    except Exception as error:  # a broken pickle can raise anything
        raise ValueError(f"{file} is truncated or no pickle ({type(error).__name__}): fetch it again") from error
    if not isinstance(batch, dict):
        raise ValueError(f"{file} holds a {type(batch).__name__}, not a dictionary: it is no file of {layout.set}")
    return batch


class _Foreign(Exception):
    pass


_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.STRING, pickle.SHORT_BINSTRING, pickle.BINSTRING, pickle.SHORT_BINBYTES, pickle.BINBYTES),
    *(pickle.UNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
    *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD),
)
"""The opcodes that Python 2 and 3 write, in any protocol, for a dictionary of numbers, strings, lists and arrays."""


class _ArraysOnly(pickle._Unpickler):
    """An unpickler that builds NumPy arrays of bytes and plain containers only; it never looks up any other name.

    It extends the unpickler written in Python, since the one in C allocates as much memory as the highest memo index in
    the file asks for. It accepts only the opcodes above, since others create or change objects without asking
    `find_class`. Dictionary keys must be strings: hashing a few nested tuples can take years.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self._unspent = len(raw)

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): _no_array,
            ("numpy", "dtype"): _plain_dtype,
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) not in known:
            raise _Foreign(f"{module}.{name}"[:60])
        return known[module, name]

    def _encode(self, text: str, encoding: str) -> bytes:
        """Bytes as Python 3 writes them in protocol 2. Their total is limited: a repeated text could fill the memory."""
        self._unspent -= len(text)
        if self._unspent < 0:
            raise _Foreign("more bytes than it has")
        return text.encode("latin1")

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)})

    def load_setitems(self) -> None:
        items = self.pop_mark()
        into = self.stack[-1]
        for k, v in zip(items[::2], items[1::2], strict=True):
            into[_key(k)] = v

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], (np.ndarray, np.dtype)):
            raise _Foreign("another object than an array to be filled")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES},
        pickle.DICT[0]: load_dict,
        pickle.SETITEMS[0]: load_setitems,
        pickle.SETITEM[0]: load_setitem,
        pickle.BUILD[0]: load_build,
    }


def _key(key: Any) -> Any:
    if not isinstance(key, (bytes, str)):
        raise _Foreign("a key that is no string")
    return key


def _no_array(*arguments: Any) -> Any:
    """Stands for the class `ndarray` as an argument. A call of it is refused, as it could ask for any amount of memory."""
    raise _Foreign("an array of a size of its own")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, whatever shape the file asks for; its state fills it later."""
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _plain_dtype(code: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
    """The type of bytes, the only one allowed. Python 2 wrote its name as a byte string, Python 3 as text."""
    if code not in ("u1", "|u1", b"u1", b"|u1"):
        raise _Foreign(f"the array type {_shown(code)}")
    return np.dtype(np.uint8)


def _shown(value: Any) -> str:
    """A value from a file in at most 40 characters, for a message."""
    return repr(value)[:40] if isinstance(value, (int, str, bytes)) else f"of a {type(value).__name__}"
