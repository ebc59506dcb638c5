"""Class folders of image files or recordings: their parts, their classes, and which files are left out."""

from __future__ import annotations

import bisect
import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_TRAIN = ("train", "training")
_VALIDATION = ("val", "valid", "validation", "dev")
_TEST = ("test", "testing")
_NOT_ENTERED = frozenset({"__MACOSX", "@eaDir"})
"""Folders that archive programs and file servers add; their files look like images but are not."""

Entries = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class Listing:
    """Files with their labels, sorted by class and name.

    Attributes:
        train, validation, test: the last two are empty if there are no such folders.
        classes: K names.
        split: a sentence on which folders are the training, validation and test set.
        notes: messages about what was left out, or how a folder was interpreted.
    """

    train: Entries
    validation: Entries
    test: Entries
    classes: tuple[str, ...]
    split: str
    notes: tuple[str, ...]


def list_classes(path: Path, suffixes: Set[str], what: str, validation_is_test: bool = False) -> Listing:
    """The files in `PATH/PART/CLASS/...` for each part, or in `PATH/CLASS/...`.

    The parts are `train`, `val` (or `valid`, `validation`, `dev`) and `test`, in upper or lower case; without `test`, the
    folder `val` is the test set.

    Args:
        path: the folder of the data set.
        suffixes: of the files to list, in lower case.
        what: name of such files in messages.
        validation_is_test: use `val` as the test set even if there is a folder `test`, as on a benchmark whose test set has
            no labels.

    Raises:
        ValueError: there are no class folders, one can't be read or contains no files, a part or a file exists twice, or
            the parts have different classes.
    """
    train, validation, test, notes = _parts(path, validation_is_test)
    left_out: Counter[str] = Counter()
    entries, classes = _part(train, suffixes, what, left_out)
    others = []
    for part in (validation, test):
        found, own = ((), classes) if part is None else _part(part, suffixes, what, left_out)
        differing = sorted(set(classes) ^ set(own))
        if part is not None and differing:
            where = train if differing[0] in classes else part
            raise ValueError(
                f"the class {differing[0]} is in {where} only: give {train.name} and {part.name} the same classes"
            )
        others.append(found)
    notes = (*notes, *not_read(path, left_out, suffixes, what))
    names = {"training": train, "validation": validation, "test": test}
    split = ", ".join(f"{name} samples are those of the folder {part.name}" for name, part in names.items() if part)
    return Listing(entries, others[0], others[1], classes, "" if train == path else split, notes)


def part_ends(good: Sequence[int], parts: Sequence[Sequence[Any]], path: Path, broken: Mapping[int, str]) -> tuple[int, int]:
    """The ends of the training and of the validation samples among the readable files, when broken files are left out.

    Args:
        good: sorted indices of the readable files, counted through training, validation and test samples.
        parts: the files of these three parts.
        path: the folder of the data set, for the message.
        broken: index of a broken file -> why.

    Raises:
        ValueError: a part has no readable file.
    """
    starts = [0, *itertools.accumulate(map(len, parts))]
    kept = [bisect.bisect_left(good, start) for start in starts]
    for k, what in enumerate(("train on", "choose the best epoch by", "test")):
        if parts[k] and kept[k] == kept[k + 1]:
            raise ValueError(f"{path} has no readable file to {what}: {broken[starts[k]]}")
    return kept[1], kept[2]


def class_files(name: str, folder: Path, suffixes: Set[str], what: str, left_out: Counter[str]) -> list[Path]:
    """The files of the class `name` in its folder and the subfolders, sorted; all others are counted in `left_out` by kind.

    Raises:
        ValueError: the folder can't be read or contains no such file, or a file exists twice.
    """
    here: Counter[str] = Counter()
    found = files_below(folder, suffixes, here)
    if not found:
        there = f"; there are {counted(here)}" if here else ""
        wanted = f"no {what} in {folder}: add some ({', '.join(sorted(suffixes))}){there}"
        raise ValueError(f"the class {name} has {wanted}")
    lower = Counter(file.lower() for file in found)
    if len(lower) < len(found):
        twice = next(file for file in found if lower[file.lower()] > 1)
        raise ValueError(f"{twice} exists twice, in upper and lower case: rename or remove one of the two")
    left_out += here
    return [Path(file) for file in found]


def not_read(path: Path, left_out: Mapping[str, int], suffixes: Set[str], what: str) -> tuple[str, ...]:
    """A note on the files and folders that were left out, or none."""
    if not left_out:
        return ()
    return (f"not read in {path}: {counted(left_out)}; {what} are files that end in {', '.join(sorted(suffixes))}",)


def subfolders(folder: Path) -> list[str]:
    """The names of the subfolders that may be classes, sorted.

    Raises:
        ValueError: the folder can't be read.
    """
    return [name for name in _entries(folder)[0] if not _is_passed_over(name)]


def files_below(folder: Path, suffixes: Set[str], left_out: Counter[str]) -> list[str]:
    """The files with these suffixes in a folder and its subfolders, sorted; all others are counted in `left_out` by kind.

    Raises:
        ValueError: a folder can't be read.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        for name in list(folders):
            if _is_passed_over(name) or os.path.islink(os.path.join(place, name)):  # noqa: PTH114, PTH118
                folders.remove(name)
                left_out[f"folders {name}" if _is_passed_over(name) else "links to folders"] += 1
        for name in files:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if name.startswith("."):
                left_out["hidden files"] += 1
            elif suffix in suffixes:
                found.append(os.path.join(place, name))  # noqa: PTH118  # a million Path objects take a minute
            else:
                left_out[f"files of {suffix}" if suffix else "files without a suffix"] += 1
    return sorted(found)


def _parts(path: Path, validation_is_test: bool) -> tuple[Path, Path | None, Path | None, tuple[str, ...]]:
    """The folders of training, validation and test samples, and notes on how they were found."""
    folders, _ = _entries(path)
    train, validation, test = (
        _one(path, [f for f in folders if f.lower() in names]) for names in (_TRAIN, _VALIDATION, _TEST)
    )
    if train is None or not (validation or test or _entries(train)[0]):  # a class may also be called train
        other = validation or test
        if other is not None:
            raise ValueError(f"{path} has a folder {other.name}, but none named train: put the training samples there")
        return path, None, None, ()
    notes = []
    unknown = [name for name in folders if path / name not in (train, validation, test)]
    if unknown:
        known = f"{_TRAIN[0]}, {', '.join(_VALIDATION)} and {_TEST[0]}"
        notes.append(f"not read in {path}: the folders {', '.join(unknown)}; parts are named {known}")
    if validation_is_test:
        if test is not None:
            notes.append(f"{test} is not read: the test set of this benchmark is its validation set")
        validation, test = None, validation
    elif validation is not None and test is None:
        notes.append(
            f"{validation} is the test set, as there is no folder test: --data.validation N draws validation samples"
        )
        validation, test = None, validation
    return train, validation, test, tuple(notes)


def _one(path: Path, names: list[str]) -> Path | None:
    if len(names) > 1:
        raise ValueError(f"{path} has the folders {' and '.join(names)}, which mean the same part: keep one of them")
    return path / names[0] if names else None


def _part(folder: Path, suffixes: Set[str], what: str, left_out: Counter[str]) -> tuple[Entries, tuple[str, ...]]:
    folders, beside = _entries(folder)
    classes = [name for name in folders if not _is_passed_over(name)]
    if len(classes) < 2:
        loose = f" and {len(beside):,} files beside them" if beside else ""
        raise ValueError(
            f"{folder} has {len(classes)} class folders{loose}: give a folder with one subfolder per class, at least two"
        )
    left_out.update(f"folders {name}" for name in folders if _is_passed_over(name))
    left_out.update("hidden files" if name.startswith(".") else "files beside the class folders" for name in beside)
    entries: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        entries += [(file, label) for file in class_files(name, folder / name, suffixes, what, left_out)]
    return tuple(entries), tuple(classes)


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the subfolders (or links to folders) in a folder, and the names of all other entries, both sorted."""
    try:
        with os.scandir(folder) as entries:
            kinds = [(entry.name, entry.is_dir()) for entry in entries]
    except OSError as error:
        _unreadable(error)
    return sorted(n for n, is_folder in kinds if is_folder), sorted(n for n, is_folder in kinds if not is_folder)


def counted(kinds: Mapping[str, int]) -> str:
    """The kinds of files and their numbers as text."""
    return ", ".join(f"{kind} ({n:,})" for kind, n in sorted(kinds.items()))


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name in _NOT_ENTERED


def _unreadable(error: OSError) -> NoReturn:
    raise ValueError(f"the folder {error.filename} can't be read ({error.strerror}): its files would be missing unnoticed")
