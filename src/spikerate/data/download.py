"""Official distributions fetched from their home: checked before they are opened, unpacked whole or not at all."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pooch

_MEMBERS, _BYTES = 10_000, 2 * 2**30
"""More than any archive fetched here holds."""


_PARTIAL_CONTENT = 206


class Progress(Protocol):
    """What pooch asks of a progress bar."""

    total: int

    def update(self, n: int) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Source:
    """Where an archive is found, and what it must be.

    Attributes:
        url: of a `.tar.gz`.
        sha256: of the archive.
        folder: the one folder that it holds.
    """

    url: str
    sha256: str
    folder: str


SOURCES = {
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "cifar-10-batches-py",
    )
}


def fetch(source: Source, to: Path, progress: Progress | None = None) -> Path:
    """Download an archive into the folder `to`, check it, and unpack it there; a broken transfer goes on where it broke.

    Args:
        progress: a bar with the few methods of tqdm's that pooch calls.

    Returns:
        the folder of the data set, which appears when it is whole.

    Raises:
        ValueError: the transfer fails, or the file is not the expected one, or its members would leave the folder.
    """
    folder = to / source.folder
    if folder.exists():
        raise ValueError(f"{folder} is there already: remove it to fetch it again")
    to.mkdir(parents=True, exist_ok=True)
    part = to / (source.url.rpartition("/")[2] + ".part")
    if not (part.exists() and _sha256(part) == source.sha256):
        _transfer(source.url, part, progress)
    found = _sha256(part)
    if found != source.sha256:
        part.unlink()
        raise ValueError(f"{source.url} gave a file of sha256 {found[:16]}..., not {source.sha256[:16]}...: it was removed")
    unpack(part, folder)
    part.unlink()
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the one folder of a tar archive, as a whole: it is put in its place when all of it is there.

    Raises:
        ValueError: the archive is broken or does not hold the folder, or a member is a link, a device, or lies outside.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as place:
        try:
            with tarfile.open(archive) as tar:
                _check(archive, tar)
                tar.extractall(place, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{archive} can't be unpacked ({error}): fetch it again") from error
        inner = Path(place, folder.name)
        if not inner.is_dir():
            raise ValueError(f"{archive} has no folder {folder.name}: it is another archive")
        shutil.move(inner, folder)


def _sha256(file: Path) -> str:
    return str(pooch.file_hash(str(file), alg="sha256"))


def _check(archive: Path, tar: tarfile.TarFile) -> None:
    """Before anything is written: what the headers promise."""
    total = 0
    for k, member in enumerate(tar):
        total += member.size
        if not (member.isfile() or member.isdir()):
            raise ValueError(f"{archive} has the member {member.name!r}, which is a link or a device: don't trust it")
        if Path(member.name).is_absolute() or ".." in Path(member.name).parts:
            raise ValueError(f"{archive} has the member {member.name!r}, which leaves its folder: don't trust it")
        if k >= _MEMBERS or total > _BYTES:
            raise ValueError(f"{archive} would unpack to more than {_MEMBERS} files or {_BYTES >> 30} GiB: don't trust it")


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` what is missing of it; from the start where the server does not go on."""
    with part.open("ab") as file:

        def start_again(answer: Any, **options: Any) -> None:
            if answer.status_code != _PARTIAL_CONTENT:
                file.truncate(0)

        headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
        download = pooch.HTTPDownloader(
            progressbar=progress or False, headers=headers, hooks={"response": start_again}, timeout=30
        )
        try:
            download(url, file, None)
        except OSError as error:  # those of requests are OSErrors too
            kept = f"{part.stat().st_size:,} bytes are kept, give the command again to go on"
            raise ValueError(f"{url} can't be fetched ({error}); {kept}") from error
