"""Small sets of images in their official layouts."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from spikerate.data import cifar as cifar_module
from spikerate.data import idx as idx_module
from support.pickles import python2

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


ROWS = 6


@dataclass(frozen=True)
class Layout:
    """An official layout: the set, the reader's file, and the files with images or labels; `victim` is the one damaged."""

    set: str
    module: ModuleType
    train: tuple[str, ...]
    test: tuple[str, ...]
    victim: str
    write: Callable[[Path, str, np.ndarray, np.ndarray], None]
    names: Callable[[Path], None]
    shape: tuple[int, int, int]
    classes: int


def pickled(key: bytes) -> Callable[[Path, str, np.ndarray, np.ndarray], None]:
    def write(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        batch = {b"batch_label": b"x", key: labels.tolist(), b"data": images.reshape(len(images), -1)}
        (folder / name).write_bytes(python2(batch))

    return write


def rows(coarse: bool) -> Callable[[Path, str, np.ndarray, np.ndarray], None]:
    def write(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        columns = [labels[:, None] // 5] * coarse + [labels[:, None], images.reshape(len(images), -1)]
        (folder / name).write_bytes(np.concatenate(columns, 1).astype(np.uint8).tobytes())

    return write


def idx(packed: bool) -> Callable[[Path, str, np.ndarray, np.ndarray], None]:
    def write(folder: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
            header = b"".join(n.to_bytes(4, "big") for n in (0x0800 + array.ndim, *array.shape))
            raw, file = header + array.astype(np.uint8).tobytes(), folder / f"{name}-{kind}-ubyte"
            if packed:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(raw, mtime=0))
            else:
                file.write_bytes(raw)

    return write


def pickled_names(name: str, key: bytes, classes: int) -> Callable[[Path], None]:
    words = [f"class{k}".encode() for k in range(classes)]
    return lambda folder: (folder / name).write_bytes(python2({key: words})) and None


def plain_names(name: str, classes: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("".join(f"class{k}\n" for k in range(classes))) and None


FIVE = tuple(f"data_batch_{k}" for k in range(1, 6))


LAYOUTS = {
    "cifar-10-batches-py": Layout(
        *("cifar10", cifar_module, FIVE, ("test_batch",), "data_batch_3", pickled(b"labels")),
        *(pickled_names("batches.meta", b"label_names", 10), (3, 32, 32), 10),
    ),
    "cifar-10-batches-bin": Layout(
        *("cifar10", cifar_module, tuple(f"{n}.bin" for n in FIVE), ("test_batch.bin",), "data_batch_3.bin", rows(False)),
        *(plain_names("batches.meta.txt", 10), (3, 32, 32), 10),
    ),
    "cifar-100-python": Layout(
        *("cifar100", cifar_module, ("train",), ("test",), "test", pickled(b"fine_labels")),
        *(pickled_names("meta", b"fine_label_names", 100), (3, 32, 32), 100),
    ),
    "cifar-100-binary": Layout(
        *("cifar100", cifar_module, ("train.bin",), ("test.bin",), "test.bin", rows(True)),
        *(plain_names("fine_label_names.txt", 100), (3, 32, 32), 100),
    ),
    "mnist": Layout(
        *("mnist", idx_module, ("train",), ("t10k",), "t10k-images-idx3-ubyte", idx(False)),
        *(lambda folder: None, (1, 28, 28), 10),
    ),
    "fashion-mnist": Layout(
        *("fashion-mnist", idx_module, ("train",), ("t10k",), "train-labels-idx1-ubyte.gz", idx(True)),
        *(lambda folder: None, (1, 28, 28), 10),
    ),
}


def write_set(path: Path, name: str, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """A small set in that layout, in its own folder; gives all its images and labels, those of the test last."""
    layout, folder, rng = LAYOUTS[name], path / name, np.random.default_rng(1)
    folder.mkdir()
    layout.names(folder)
    made = []
    for file in (*layout.train, *layout.test):
        images = rng.integers(0, 256, (rows, *layout.shape), dtype=np.uint8)
        labels = rng.integers(0, layout.classes, rows)
        layout.write(folder, file, images, labels)
        made.append((images, labels))
    images, labels = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
    return images, labels


def colour(part: str, label: int, k: int) -> tuple[int, int, int]:
    return (200 if part == "train" else 90, 20 * label, 10 * k)


def write_folder(path: Path, classes: int = 3, n: int = 4, side: int = 24) -> Path:
    """`n` images of one colour for each class in train, and half as many in val."""
    for part, count in (("train", n), ("val", n // 2)):
        for label in range(classes):
            folder = path / part / f"c{label}"
            folder.mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (side + 3 * k, side), colour(part, label, k)).save(folder / f"{k}.png")
    return path


def write_tiny_imagenet(path: Path, classes: int = 3, n: int = 2, tests: int = 1) -> Path:
    """`n` images of each class in train and `tests` in val, whose names are mixed; wnids.txt is in reverse order."""
    folder = path / "tiny-imagenet-200"
    wnids = [f"n{k:08d}" for k in range(classes)]
    for label, wnid in enumerate(wnids):
        inside = folder / "train" / wnid / "images"
        inside.mkdir(parents=True)
        for k in range(n):
            Image.new("RGB", (64, 64), colour("train", label, k)).save(inside / f"{wnid}_{k}.JPEG", quality=95)
        inside.with_name(f"{wnid}_boxes.txt").write_text("".join(f"{wnid}_{k}.JPEG\t0\t0\t63\t63\n" for k in range(n)))
    for part in ("val", "test"):
        (folder / part / "images").mkdir(parents=True)
    lines = []
    for k in range(tests):
        for label, wnid in enumerate(reversed(wnids)):
            name = f"val_{k * classes + label}.JPEG"
            image = Image.new("RGB", (64, 64), colour("val", classes - 1 - label, k))
            image.save(folder / "val" / "images" / name, quality=95)
            lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    Image.new("RGB", (64, 64)).save(folder / "test" / "images" / "test_0.JPEG")
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(wnids)))
    words = [f"n{k:08d}\tthing{k}, object {k}\n" for k in range(classes + 5)]
    (folder / "words.txt").write_text("".join(words))
    return folder
