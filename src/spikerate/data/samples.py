"""Samples, in memory or in files, and the data set of training, validation and test samples."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Block:
    """Samples that are read and augmented together.

    Attributes:
        index: [n], indices of the samples.
        seed: seed of a random resized crop; None for evaluation.
    """

    index: Tensor
    seed: int | None = None


class Samples(ABC):
    """Images [C, H, W] or event frames [T, C, H, W], and their labels [N] int64."""

    labels: Tensor

    @abstractmethod
    def read(self, blocks: Iterable[Block], device: torch.device) -> Iterator[Tensor]:
        """Yield the samples of each block, [n, (T,) C, H, W], on the device, in the network's input size, not yet scaled.

        Raises:
            ValueError: a file is broken; the message names it.
        """

    @abstractmethod
    def gather(self, index: Tensor, device: torch.device) -> Samples:
        """The samples with these indices, stored on the device; samples in files stay in their files."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample as `read` yields it."""

    def to(self, device: torch.device) -> Samples:
        """All samples, stored on the device."""
        return self.gather(torch.arange(len(self)), device)

    def __getitem__(self, index: Tensor | slice) -> Samples:
        """The samples with these indices, without copying them."""
        chosen = torch.arange(len(self))[index]
        return Selected(self, chosen, self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Stored(Samples):
    """Samples in one tensor, in memory or memory-mapped from a file.

    Attributes:
        samples: [N, C, H, W] or [N, T, C, H, W], of an integer type.
        labels: [N] int64.
    """

    samples: Tensor
    labels: Tensor

    def read(self, blocks: Iterable[Block], device: torch.device) -> Iterator[Tensor]:
        for block in blocks:
            yield self.samples[block.index.to(self.samples.device)].to(device)

    def gather(self, index: Tensor, device: torch.device) -> Stored:
        return Stored(self.samples[index].to(device), self.labels[index].to(device))

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.samples.shape[-3:]
        return c, h, w


class Fit(Protocol):
    """Resizes or crops images [n, C, H, W] in floating point to `size` x `size`, at random if a seed is given."""

    @property
    def size(self) -> int: ...

    def __call__(self, x: Tensor, seed: int | None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Fitted(Samples):
    """Samples that are resized or cropped by `fit` when they are read, on the device."""

    inner: Samples
    fit: Fit
    labels: Tensor

    def read(self, blocks: Iterable[Block], device: torch.device) -> Iterator[Tensor]:
        wanted, seeds = itertools.tee(blocks)
        for x, block in zip(self.inner.read(wanted, device), seeds, strict=True):
            planes = self.fit(x.flatten(1, -3).to(torch.float32), block.seed)
            yield planes.reshape(*x.shape[:-2], *planes.shape[-2:])

    def gather(self, index: Tensor, device: torch.device) -> Fitted:
        return fitted(self.inner.gather(index, device), self.fit)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.inner.shape[0], self.fit.size, self.fit.size


def fitted(samples: Samples, fit: Fit) -> Fitted:
    """The samples, resized or cropped by `fit` when they are read."""
    return Fitted(samples, fit, samples.labels)


@dataclass(frozen=True, eq=False)
class Selected(Samples):
    """A subset: the samples of `whole` with the indices `index` [N]."""

    whole: Samples
    index: Tensor
    labels: Tensor

    def read(self, blocks: Iterable[Block], device: torch.device) -> Iterator[Tensor]:
        return self.whole.read((Block(self.index[block.index.cpu()], block.seed) for block in blocks), device)

    def gather(self, index: Tensor, device: torch.device) -> Samples:
        return self.whole.gather(self.index[index], device)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.whole.shape


@dataclass(frozen=True)
class Units:
    """How stored values are scaled and normalised.

    Attributes:
        mean, std: of each channel, for normalisation, in multiples of `unit`.
        unit: the stored value that is scaled to 1: 255 for images, 1 for counts of events.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: float = 255.0

    def scale(self, x: Tensor) -> Tensor:
        """[B, ..., C, H, W] as stored -> float32 in multiples of `unit`."""
        return x.to(torch.float32) / self.unit

    def normalize(self, x: Tensor) -> Tensor:
        """[B, ..., C, H, W] in multiples of `unit` -> zero mean and unit standard deviation in each channel."""
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training, validation and test samples with their description.

    Attributes:
        name: of the data set.
        train, validation, test: the three disjoint parts.
        classes: K names.
        units: how stored values are scaled and normalised.
        licence: of the data.
        checksums: name of a file that was read -> sha256.
        split: how the samples were split, as text.
        drawn: "validation" or "test" -> sorted indices of its samples, if they were drawn from the training samples.
        skipped: a sentence for each broken file that was left out.
        notes: messages about what else was not read, or how a folder was interpreted.
    """

    name: str
    train: Samples
    validation: Samples
    test: Samples
    classes: tuple[str, ...]
    units: Units
    licence: str = "not known"
    checksums: dict[str, str] = field(default_factory=dict)
    split: str = ""
    drawn: dict[str, list[int]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a sample, or of a frame of it."""
        return self.train.shape

    def to(self, device: torch.device) -> DataSet:
        return replace(self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device))


class DataReader(ABC):
    """Reads a data set of the user's own. One is a frozen dataclass that inherits from this.

    Attributes:
        recorded: whether its samples are recordings, cut into T frames [T, C, H, W]; else they are images [C, H, W].
    """

    recorded: ClassVar[bool] = False

    @abstractmethod
    def read(self, path: Path | None, T: int) -> DataSet:
        """The data set, with the validation and test samples that it comes with; the same each time.

        Where a part has no samples, the settings `data.validation` and `data.test` say how many to draw.

        Args:
            path: what `--data` gives; None without it.
            T: time steps, into which recordings are cut.

        Raises:
            ValueError: a file is missing or broken.
        """


@dataclass(frozen=True)
class Listed(DataReader):
    """No data set of the user's own, but that of the name."""

    def read(self, path: Path | None, T: int) -> DataSet:
        raise AssertionError("the catalogue reads it")


def divide(data: DataSet, validation: int, test: int, subset: int | None) -> DataSet:
    """Draw validation and test samples from the training samples, always in the same way (NumPy's generator, seed 0).

    Args:
        data: the data set.
        validation: size of the validation set to draw, if the data set has none.
        test: size of the test set to draw, if the data set has none.
        subset: number of training samples to keep; the validation and test set are reduced by the same factor.

    Raises:
        ValueError: a number is out of range, or leaves nothing to train on.
    """
    total = len(data.train)
    if len(data.test) and test:
        raise ValueError(f"data.test is {test}, but {data.name} has {len(data.test):,} test samples of its own: leave it")
    if len(data.validation) and validation:
        own = f"{len(data.validation):,} validation samples of its own"
        raise ValueError(f"data.validation is {validation}, but {data.name} has {own}: leave it at 0")
    if not (len(data.test) or test):
        seen = f" ({data.notes[0]})" if data.notes else ""
        raise ValueError(f"{data.name} has no test samples of its own{seen}: give --data.test N, to draw N of its {total:,}")
    for name, n in (("validation", validation), ("test", test)):
        if not 0 <= n < total:
            raise ValueError(f"data.{name} is {n}: give a number from 0 to {total - 1}, the training samples less one")
    if validation + test >= total:
        raise ValueError(
            f"data.validation and data.test take {validation + test} of {total} samples: none is left to train on"
        )
    order = torch.from_numpy(np.random.default_rng(0).permutation(total))
    parts = {
        "validation": order[:validation],
        "test": order[validation : validation + test],
        "train": order[validation + test :],
    }
    drawn: dict[str, list[int]] = {}
    made: dict[str, Samples] = {"validation": data.validation, "test": data.test, "train": data.train}
    for name, index in parts.items():
        if 0 < len(index) < total:
            chosen = index.sort().values
            made[name] = data.train[chosen]
            drawn |= {name: chosen.tolist()} if name != "train" else {}
    how = [f"{len(index)} {name} of {total}" for name, index in drawn.items()]
    ways = [data.split] if data.split else []
    ways += [f"drawn by NumPy default_rng(0).permutation: {', '.join(how)}"] if how else []
    split = "; ".join(ways) or "as distributed"
    done = replace(data, train=made["train"], validation=made["validation"], test=made["test"], split=split, drawn=drawn)
    return done if subset is None else _cut(done, subset)


def _cut(data: DataSet, subset: int) -> DataSet:
    total = len(data.train)
    if not 1 <= subset <= total:
        raise ValueError(f"data.subset is {subset}: give a number from 1 to {total}, the training samples")

    def few(samples: Samples) -> Tensor:
        n = -(-len(samples) * subset // total)
        return torch.from_numpy(np.random.default_rng(1).permutation(len(samples))[:n]).sort().values

    train, validation, test = (few(part) for part in (data.train, data.validation, data.test))
    kept = {"validation": validation, "test": test}
    drawn = {name: [index[k] for k in kept[name].tolist()] for name, index in data.drawn.items()}
    split = f"{data.split}; of each part {subset} in {total}, by NumPy default_rng(1).permutation"
    parts = {"train": data.train[train], "validation": data.validation[validation], "test": data.test[test]}
    return replace(data, train=parts["train"], validation=parts["validation"], test=parts["test"], split=split, drawn=drawn)
