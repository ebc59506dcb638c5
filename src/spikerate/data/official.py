"""What official layouts have in common: the folder of an archive, and its small text files."""

from __future__ import annotations

from pathlib import Path

LARGEST_TEXT = 2**20
"""Largest list of trials or table of labels in bytes; most official ones have some hundred."""


def inner(path: Path, name: str) -> Path:
    """The folder `name` of an archive, if `path` is its parent folder; else `path` itself.

    Raises:
        ValueError: there is no folder `path`.
    """
    need(path)
    return path / name if (path / name).is_dir() else path


def need(path: Path) -> None:
    """Raise `ValueError` if there is no folder `path`."""
    if not path.is_dir():
        raise ValueError(f"the data folder {path} does not exist: give the folder of the data set")


def text(file: Path, largest: int = LARGEST_TEXT) -> str:
    """A small text file of a data set.

    Args:
        file: in UTF-8, with or without a byte order mark.
        largest: in bytes; no official file has more.

    Raises:
        ValueError: it is missing, unreadable, too large or no text.
    """
    if not file.is_file():
        raise ValueError(f"{file} does not exist: unpack the data set again")
    try:
        with file.open("rb") as opened:
            raw = opened.read(largest + 1)
        if len(raw) > largest:
            raise ValueError(
                f"{file} has more than {largest:,} bytes, and no official file so many: unpack the data set again"
            )
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text at byte {error.start}: unpack the data set again") from error
