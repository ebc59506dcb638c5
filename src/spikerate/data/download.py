"""Downloads of official data sets: checked before they are opened, and unpacked completely or not at all."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pooch

from spikerate.system.files import is_there, open_plain

_MEMBERS, _BYTES = 10_000, 2 * 2**30
"""Limits on an archive's members and bytes; more than any archive fetched here has."""


_PARTIAL_CONTENT = 206


class Progress(Protocol):
    """The methods of a progress bar that pooch calls."""

    total: int

    def update(self, n: int) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Source:
    """The files of a data set: their addresses and checksums.

    Attributes:
        files: address -> sha256.
        folder: the folder in the archive, or the folder to put loose files into.
        archive: whether the only file is a `.tar.gz` to unpack.
    """

    files: Mapping[str, str]
    folder: str
    archive: bool = True


_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

SOURCES = {
    "cifar10": Source(
        {_TORONTO + "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        "cifar-10-batches-py",
    ),
    "cifar100": Source(
        {_TORONTO + "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
        "cifar-100-python",
    ),
    "mnist": Source(
        {
            _MNIST + "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            _MNIST + "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            _MNIST + "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            _MNIST + "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        "mnist",
        archive=False,
    ),
    "fashion-mnist": Source(
        {
            _FASHION + "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            _FASHION + "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            _FASHION + "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            _FASHION + "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        "fashion-mnist",
        archive=False,
    ),
}


def fetch(source: Source, to: Path, progress: Progress | None = None) -> Path:
    """Download a data set into the folder `to`, check it, and unpack it there. A broken transfer is resumed.

    Args:
        source: what to download.
        to: folder to put the data set's folder into.
        progress: a progress bar.

    Returns:
        the folder of the data set, which appears only when it is complete.

    Raises:
        ValueError: a transfer fails, a file is not the expected one, or an archive's members would leave the folder.
    """
    folder = to / source.folder
    if is_there(folder):
        raise ValueError(f"{folder} already exists: remove it to fetch it again")
    to.mkdir(parents=True, exist_ok=True)
    parts = {to / f"{_name(url)}.part": (url, sha256) for url, sha256 in source.files.items()}
    for part, (url, sha256) in parts.items():
        if not (is_there(part) and _sha256(part) == sha256):
            _transfer(url, part, progress)
        found = _sha256(part)
        if found != sha256:
            part.unlink()
            raise ValueError(f"{url} gave a file of sha256 {found[:16]}..., not {sha256[:16]}...: it was removed")
    if source.archive:
        for part in parts:
            unpack(part, folder)
            part.unlink()
    else:
        with tempfile.TemporaryDirectory(dir=to, prefix=".fetch-") as place:
            whole = Path(place, source.folder)
            whole.mkdir()
            for part, (url, _) in parts.items():
                part.rename(whole / _name(url))
            whole.rename(folder)
    return folder


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the one folder of a tar archive. It appears at its place only when all of it is unpacked.

    Raises:
        ValueError: the archive is broken or lacks the folder, or a member is a link, a device, or outside the folder.
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
    open_plain(file).close()
    return str(pooch.file_hash(str(file), alg="sha256"))


def _check(archive: Path, tar: tarfile.TarFile) -> None:
    """Check the headers of all members before anything is written."""
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
    """Append the missing bytes to `part`; start again if the server does not support that."""
    with open_plain(part, "ab") as file:

        def start_again(answer: Any, **options: Any) -> None:
            if answer.status_code != _PARTIAL_CONTENT:
                file.truncate(0)

        headers = {"Range": f"bytes={file.tell()}-", "Accept-Encoding": "identity"}
        download = pooch.HTTPDownloader(
            progressbar=progress or False, headers=headers, hooks={"response": start_again}, timeout=30
        )
        try:
            download(url, file, None)
        except OSError as error:  # the errors of requests are OSErrors, too
            kept = f"{part.stat().st_size:,} bytes are kept, give the command again to go on"
            raise ValueError(f"{url} can't be fetched ({error}); {kept}") from error
