"""Small sets of images in their official layouts."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np

FILES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]


def write_cifar(folder: Path, rows: int = 6) -> Path:
    """A small CIFAR-10 in the official layout."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in FILES[:-1]:
        data = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": rng.integers(0, 10, rows).tolist(), b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class{k}".encode() for k in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return folder


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def write_mnist(folder: Path, n: int) -> None:
    """Images of noise in the official layout."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8)
        head = struct.pack(">4I", 0x0803, n, 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, n) + labels.tobytes())
