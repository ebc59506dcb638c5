"""Image files in class folders as a data set: decoded by worker processes in every epoch, or once into a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikerate.data.cache import cached
from spikerate.data.class_folders import list_classes, part_ends
from spikerate.data.decode import SUFFIXES, decode
from spikerate.data.resize import MARGIN, Crop
from spikerate.data.samples import Block, DataSet, Samples, Stored, Units, fitted
from spikerate.data.settings import Data
from spikerate.data.streams import stream
from spikerate.data.workers import parallel
from spikerate.system.progress import Track

_MOST_READ = 2**31
"""Bytes of images that are read for the checksum of the data, which takes a few seconds."""


@dataclass(frozen=True, eq=False)
class Files(Samples):
    """Images that are decoded every time they are read, by `workers` processes."""

    files: Sequence[Path]
    labels: Tensor
    size: int
    workers: int | None

    def read(self, blocks: Iterable[Block], device: torch.device) -> Iterator[Tensor]:
        tasks = (_Task([self.files[k] for k in block.index.tolist()], self.size, block.seed) for block in blocks)
        return _on(device, parallel(_decode, tasks, self.workers))  # which begins now

    def gather(self, index: Tensor, device: torch.device) -> Files:
        return replace(self, files=[self.files[k] for k in index.tolist()], labels=self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size


def _on(device: torch.device, images: Iterator[Tensor]) -> Iterator[Tensor]:
    try:
        for x in images:
            yield x.to(device)
    except ValueError as error:
        raise ValueError(f"{error}; a new run with --data.broken skip leaves such files out") from error


@dataclass(frozen=True)
class _Task:
    files: list[Path]
    size: int
    seed: int | None


def _decode(task: _Task) -> np.ndarray:
    """The images of a block, each with its own random crop."""
    seeds = [None if task.seed is None else stream(task.seed, k) for k in range(len(task.files))]
    return np.stack([decode(file, task.size, seed, MARGIN) for file, seed in zip(task.files, seeds, strict=True)])


@dataclass(frozen=True)
class _Survey:
    """What the cache keeps of a file: the image, or only that it is readable; a sentence if it is broken."""

    side: int
    keep: bool

    def __call__(self, file: Path) -> np.ndarray | str:
        try:
            image = decode(file, self.side, None, margin=1)
        except ValueError as error:
            return str(error)
        return image if self.keep else np.ones((), np.uint8)


def image_files(data: Data, T: int, track: Track) -> DataSet:
    """Class folders of images: `PATH/PART/CLASS/...` with the parts `train`, `val` and `test`, or `PATH/CLASS/...`.

    Raises:
        ValueError: a folder is missing, the classes of the parts differ, or a file is broken; the message names it.
    """
    assert data.path is not None
    listing = list_classes(data.path, SUFFIXES, "images", validation_is_test=data.name == "imagenet")
    size, everything = data.size or 224, (*listing.train, *listing.validation, *listing.test)
    files, labels = [file for file, _ in everything], torch.tensor([label for _, label in everything])
    stats = [_stat(file) for file in files]
    # The record of the run does not depend on where the files are; a cache does, and on their modification times.
    facts = {"files": _digest([file.relative_to(data.path) for file in files], labels, [(size,) for size, _ in stats])}
    facts |= _contents(files, [size for size, _ in stats], track)
    broken: dict[int, str] = {}
    if data.decoded or data.broken == "skip":
        survey = _Survey(round(size * MARGIN), data.decoded)
        shape = (3, survey.side, survey.side) if data.decoded else ()
        what = "decoding images" if data.decoded else "looking for broken images"

        def rows() -> Iterator[Any]:
            return track(parallel(survey, files, data.workers), what, len(files))

        key = {"files": _digest(files, labels, stats)}
        kept = cached(data.cache, data.name, key, shape, np.uint8, rows, data.broken == "skip", track)
        broken = kept.broken
    good = torch.tensor([k for k in range(len(files)) if k not in broken], dtype=torch.long)
    samples: Samples
    if data.decoded:
        samples = fitted(Stored(kept.rows, labels[good]), Crop(size))
    else:
        samples = Files([files[k] for k in good.tolist()], labels[good], size, data.workers)
    in_train, before_test = part_ends(good.tolist(), (listing.train, listing.validation, listing.test), data.path, broken)
    return DataSet(
        name=data.name,
        train=samples[:in_train],
        validation=samples[in_train:before_test],
        test=samples[before_test:],
        classes=listing.classes,
        units=Units((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        licence="ImageNet's terms of access: research use" if data.name == "imagenet" else "not known: your own data",
        checksums=facts,
        split=listing.split,
        skipped=tuple(broken.values()),
        notes=listing.notes,
    )


def _digest(names: Sequence[Path], labels: Tensor, stats: Sequence[tuple[int, ...]]) -> str:
    """A hash of the files' names, labels, sizes and times."""
    digest = hashlib.sha256()
    for name, label, stat in zip(names, labels.tolist(), stats, strict=True):
        digest.update(os.fsencode(f"{name} {label} {stat}\n"))
    return digest.hexdigest()


def _contents(files: Sequence[Path], sizes: Sequence[int], track: Track) -> dict[str, str]:
    """The checksum of the files' contents; of a random sample of the files if they are too many to read."""
    order = np.random.default_rng(2).permutation(len(files))
    few = np.array([max(0, size) for size in sizes])[order].cumsum() <= _MOST_READ
    chosen = sorted(order[few].tolist())
    digest = hashlib.sha256()
    for k in track(iter(chosen), "checking images", len(chosen)):
        try:
            content = files[k].read_bytes() if files[k].is_file() else b""
        except OSError:  # decoding the file reports it
            content = b""
        digest.update(hashlib.sha256(content).digest())
    return {"contents" if all(few) else f"contents of {len(chosen)} of {len(files)} files": digest.hexdigest()}


def _stat(file: Path) -> tuple[int, int]:
    """Size in bytes, and time of the last change in nanoseconds."""
    try:
        found = file.stat()
    except OSError:  # a broken link, for instance; decoding the file reports it
        return -1, -1
    return found.st_size, found.st_mtime_ns
