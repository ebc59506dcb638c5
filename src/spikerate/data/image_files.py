"""Image files as a data set, in class folders or as Tiny ImageNet has them: decoded in every epoch, or once into a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikerate.data.cache import Cached, cached, stamp
from spikerate.data.class_folders import Listing, list_classes, part_ends
from spikerate.data.decode import SUFFIXES, decode
from spikerate.data.official import inner
from spikerate.data.resize import MARGIN, Crop
from spikerate.data.samples import Block, DataSet, Samples, Stored, Units, fitted
from spikerate.data.settings import Data
from spikerate.data.streams import stream
from spikerate.data.tiny_imagenet import list_tiny_imagenet
from spikerate.data.workers import parallel
from spikerate.system.progress import Track

_MOST_READ = 2**31
"""Bytes of images that are read for the checksum of the data, which takes a few seconds."""
_TERMS = "ImageNet's terms of access: research use"


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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is kept of a file."""
        return (3, self.side, self.side) if self.keep else ()

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
    size = data.size or 224
    survey = _Survey(round(size * MARGIN), data.decoded) if data.decoded or data.broken == "skip" else None

    def samples(files: list[Path], labels: Tensor, images: Tensor) -> Samples:
        return fitted(Stored(images, labels), Crop(size)) if data.decoded else Files(files, labels, size, data.workers)

    units = Units((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    licence = _TERMS if data.name == "imagenet" else "not known: your own data"
    return _listed(data, data.path, listing, survey, samples, units, licence, track)


def tiny_imagenet(data: Data, T: int, track: Track) -> DataSet:
    """Tiny ImageNet, decoded once into a cache, since its images are small enough to be kept in memory (1.4 GB).

    Raises:
        ValueError: as `list_tiny_imagenet`, or a file is broken; the message names it.
    """
    path = inner(data.path or Path(), "tiny-imagenet-200")
    units = Units((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))

    def samples(files: list[Path], labels: Tensor, images: Tensor) -> Samples:
        return Stored(images, labels)

    return _listed(data, path, list_tiny_imagenet(path), _Survey(64, keep=True), samples, units, _TERMS, track)


def _listed(
    data: Data,
    path: Path,
    listing: Listing,
    survey: _Survey | None,
    made: Callable[[list[Path], Tensor, Tensor], Samples],
    units: Units,
    licence: str,
    track: Track,
) -> DataSet:
    """The data set of listed files below the folder `path`.

    Args:
        survey: what to do with each file before the run begins; None: nothing.
        made: (files, labels, what the survey kept of them) -> samples; called with the readable files.
    """
    everything = (*listing.train, *listing.validation, *listing.test)
    files, labels = [file for file, _ in everything], torch.tensor([label for _, label in everything])
    stats = [stamp(file) for file in files]
    # The record of the run does not depend on where the files are; a cache does, and on their modification times.
    facts = {"files": _digest([file.relative_to(path) for file in files], labels, [(size,) for size, _ in stats])}
    facts |= _contents(files, [size for size, _ in stats], track)
    kept = Cached(torch.empty(0), {}, "")
    if survey is not None:
        key = {"files": _digest(files, labels, stats)}
        rows = partial(_surveyed, survey, files, data.workers, track)
        kept = cached(data.cache, data.name, key, survey.shape, np.uint8, rows, data.broken == "skip", track)
    good = torch.tensor([k for k in range(len(files)) if k not in kept.broken], dtype=torch.long)
    samples = made([files[k] for k in good.tolist()], labels[good], kept.rows)
    in_train, before_test = part_ends(good.tolist(), (listing.train, listing.validation, listing.test), path, kept.broken)
    return DataSet(
        name=data.name,
        train=samples[:in_train],
        validation=samples[in_train:before_test],
        test=samples[before_test:],
        classes=listing.classes,
        units=units,
        licence=licence,
        checksums=facts,
        split=listing.split,
        skipped=tuple(kept.broken.values()),
        notes=listing.notes,
    )


def _surveyed(survey: _Survey, files: Sequence[Path], workers: int | None, track: Track) -> Iterator[Any]:
    what = "decoding images" if survey.keep else "looking for broken images"
    return track(parallel(survey, files, workers), what, len(files))


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
