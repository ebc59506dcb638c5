"""Single files for `predict`, read in the same way as the samples of the network's data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from spikerate.data.catalogue import SETS, input_shape
from spikerate.data.class_folders import counted, files_below
from spikerate.data.decode import SUFFIXES as IMAGES
from spikerate.data.decode import decode
from spikerate.data.frames import frames
from spikerate.data.recordings import Recording, read
from spikerate.data.resize import MARGIN, Resize
from spikerate.data.settings import Data
from spikerate.system.codec import path_of

RECORDINGS = frozenset({".aedat", ".aedat4", ".bin", ".npz"})
_GREY = (0.299, 0.587, 0.114)


def sample_files(paths: Iterable[Path], data: Data) -> tuple[list[Path], list[str]]:
    """The files among `paths`, together with the image or recording files in the folders among them.

    Returns:
        the files in order, and notes on files in folders that are not read.

    Raises:
        ValueError: a path does not exist, or a folder can't be read or contains no such file.
    """
    if data.name == "own":
        raise ValueError(
            f"predict reads files like those of the data sets of spikerate, and this run's samples are read by "
            f"{path_of(data.reader)}: ask the network in Python, by spikerate.load"
        )
    if SETS[data.name].kind == "sounds":
        raise ValueError(
            f"predict reads a sample from each file, and a file of {data.name} has all of them: ask the network in Python, "
            "by spikerate.load"
        )
    suffixes = RECORDINGS if SETS[data.name].kind == "events" else IMAGES
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        if path.is_dir():
            left_out: Counter[str] = Counter()
            inside = [Path(file) for file in files_below(path, suffixes, left_out)]
            if not inside:
                raise ValueError(f"the folder {path} contains no file that ends in {', '.join(sorted(suffixes))}")
            found += inside
            notes += [f"not read in {path}: {counted(left_out)}"] if left_out else []
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"{path} does not exist: give files or folders")
    return found, notes


def read_sample(file: Path, data: Data, T: int) -> Tensor:
    """The sample in a file, [C, H, W] or for a recording [T, 2, H, W], in the size and units of the data set's samples.

    Raises:
        ValueError: the file is broken or of another kind; the message names it.
    """
    channels, side, _ = input_shape(data)
    kind = SETS[data.name].kind
    if kind == "events":
        sensor = data.sensor or SETS[data.name].shape[1:]
        (events,) = read([Recording(file, 0)], sensor)
        if isinstance(events, str):
            raise ValueError(events)
        try:
            cut = torch.from_numpy(frames(events, T, sensor, data.frames))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        return Resize(data.size)(cut.float(), None) if data.size else cut
    image = torch.from_numpy(decode(file, side, None, MARGIN if kind == "files" else 1.0))
    if channels == 1:
        image = torch.tensordot(torch.tensor(_GREY), image.float(), dims=1).round().unsqueeze(0)
    return image
