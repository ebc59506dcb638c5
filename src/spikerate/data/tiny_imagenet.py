"""Tiny ImageNet in its official layout: the images of each class, none of which has been opened yet."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from spikerate.data.class_folders import Entries, Listing, class_files, files_below, not_read, subfolders
from spikerate.data.decode import SUFFIXES
from spikerate.data.official import LARGEST_TEXT, text

_WORDS = 2**23
"""Largest words.txt in bytes; the official one has 2.7 million, for all 82,115 nouns of WordNet."""
_AGAIN = "unpack tiny-imagenet-200.zip again"


def list_tiny_imagenet(path: Path) -> Listing:
    """Tiny ImageNet (Stanford's course CS231n, 2015): 100,000 training images of 64 x 64 pixels, 200 classes.

    The test set is the folder `val`, since the images of the folder `test` have no labels. Labels follow the sorted WordNet
    numbers, as those of class folders do, and not the order of `wnids.txt`. A class is named by the first of its words.

    Args:
        path: the folder `tiny-imagenet-200`, with `train/WNID/images/*`, `val/images/*`, `val/val_annotations.txt` (file,
            WNID and box, which is not used), `wnids.txt` and `words.txt`.

    Raises:
        ValueError: a folder or table is missing or broken, a class has no images, or the images and the table of `val`
            differ.
    """
    wnids = _wnids(path / "wnids.txt")
    _check_folders(path, wnids)
    classes = _names(path / "words.txt", wnids)
    left_out: Counter[str] = Counter()
    train = tuple(
        (file, label)
        for label, wnid in enumerate(wnids)
        for file in class_files(wnid, path / "train" / wnid / "images", SUFFIXES, "images", left_out)
    )
    test = _validation(path / "val", {wnid: label for label, wnid in enumerate(wnids)}, left_out)
    split = "training samples are those of the folder train, test samples are those of the folder val"
    notes = (
        "test samples are those of val, since the folder test has no labels",
        *not_read(path, left_out, SUFFIXES, "images"),
    )
    return Listing(train, (), test, classes, split, notes)


def _wnids(file: Path) -> tuple[str, ...]:
    """The WordNet numbers of the classes, sorted."""
    found: set[str] = set()
    for k, line in _lines(file):
        wnid = line.strip()
        if not re.fullmatch("n[0-9]{8}", wnid):
            raise ValueError(f"{file} has {wnid[:40]!r} in line {k}, and not a number of WordNet like n01443537: {_AGAIN}")
        if wnid in found:
            raise ValueError(f"{file} lists {wnid} twice, again in line {k}: {_AGAIN}")
        found.add(wnid)
    return tuple(sorted(found))


def _check_folders(path: Path, wnids: tuple[str, ...]) -> None:
    """Raise `ValueError` if the class folders are not those that are listed."""
    folders = set(subfolders(path / "train"))
    if not set(wnids) <= folders:
        raise ValueError(f"{path / 'train'} has no folder of the class {min(set(wnids) - folders)}: it is incomplete")
    if not folders <= set(wnids):
        raise ValueError(
            f"{path / 'train'} has the folder {min(folders - set(wnids))}, which wnids.txt does not list: {_AGAIN}"
        )


def _names(file: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """For each class the first of its words."""
    words = {wnid: words for _, (wnid, words) in _rows(file, 2, _WORDS)}
    missing = [wnid for wnid in wnids if wnid not in words]
    if missing:
        raise ValueError(f"{file} has no words for the class {missing[0]}: {_AGAIN}")
    return tuple(words[wnid].partition(",")[0].strip() for wnid in wnids)


def _validation(folder: Path, labels: Mapping[str, int], left_out: Counter[str]) -> Entries:
    """The labelled images of `val`, sorted by class and name."""
    table, images = folder / "val_annotations.txt", folder / "images"
    found: dict[str, int] = {}
    for k, (name, wnid, *_) in _rows(table, 6):
        if wnid not in labels:
            raise ValueError(
                f"{table} gives {name!r} the class {wnid!r} in line {k}, which wnids.txt does not list: {_AGAIN}"
            )
        if name in found:
            raise ValueError(f"{table} lists {name!r} twice, again in line {k}: {_AGAIN}")
        found[name] = labels[wnid]
    if not found:
        raise ValueError(f"{table} is empty: {_AGAIN}")
    files = {os.path.relpath(file, images): Path(file) for file in files_below(images, SUFFIXES, left_out)}
    if not found.keys() <= files.keys():
        raise ValueError(f"{table} lists {min(found.keys() - files.keys())!r}, which is not in {images}: {_AGAIN}")
    if not files.keys() <= found.keys():
        raise ValueError(f"{files[min(files.keys() - found.keys())]} has no line in {table}: {_AGAIN}")
    return tuple(sorted(((file, found[name]) for name, file in files.items()), key=lambda entry: (entry[1], entry[0])))


def _rows(file: Path, columns: int, largest: int = LARGEST_TEXT) -> Iterator[tuple[int, list[str]]]:
    """The number of each line and its columns, which tabs separate."""
    for k, line in _lines(file, largest):
        row = [column.strip() for column in line.split("\t", columns - 1)]
        if len(row) != columns:
            raise ValueError(f"{file} has {line[:40]!r} in line {k}, and not {columns} columns with tabs between: {_AGAIN}")
        yield k, row


def _lines(file: Path, largest: int = LARGEST_TEXT) -> Iterator[tuple[int, str]]:
    """The numbers of the lines that are not blank, from 1, and the lines."""
    return ((k, line) for k, line in enumerate(text(file, largest).splitlines(), 1) if line.strip())
