"""Small files of the Spiking Heidelberg Digits and Speech Commands, in the layout of the official ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHD = [f"{language}-{k}" for language in ("english", "german") for k in range(10)]
SSC = [f"word-{k}" for k in range(35)]


def some_spikes(seed: int, n: int = 40, seconds: float = 0.9) -> tuple[Any, Any]:
    """Times as the official files have them, float16 and sorted, and units."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, seconds, n)).astype(np.float16), rng.integers(0, 700, n).astype(np.uint16)


def write_sounds(file: Path, words: Sequence[tuple[Any, Any]], labels: Any, keys: Sequence[str] | None) -> None:
    """`spikes/times` and `spikes/units` as ragged arrays, `labels`, and in `extra` speakers and the words of the labels."""
    import h5py

    with h5py.File(file, "w") as content:
        for name, column in (("times", 0), ("units", 1)):
            rows = [row[column] for row in words]
            ragged = content.create_dataset(f"spikes/{name}", len(rows), h5py.vlen_dtype(rows[0].dtype))
            for k, row in enumerate(rows):
                ragged[k] = row
        content["labels"] = labels
        content["extra/speaker"] = np.zeros(len(words), np.uint16)
        if keys is not None:
            content["extra/keys"] = np.array([key.encode() for key in keys])


def write_set(root: Path, name: str, train: int = 40) -> None:
    """The files of "shd" or "ssc", with `train` recordings for training and as many as there are classes in other parts."""
    keys = {"shd": SHD, "ssc": SSC}[name]
    for part in ("train", "valid", "test") if name == "ssc" else ("train", "test"):
        n = train if part == "train" else len(keys)
        labels = (np.arange(n) % len(keys)).astype(np.uint16)
        write_sounds(root / f"{name}_{part}.h5", [some_spikes(len(part) + k) for k in range(n)], labels, keys)
