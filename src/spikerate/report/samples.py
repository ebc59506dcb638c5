"""Predictions on the test set for a report: confusions of classes, and examples with their spikes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from spikerate.models import short_path
from spikerate.runs.examples import Examples

_LARGEST_MATRIX = 20
"""With more classes, the most frequent confusions are listed instead."""
_MOST_CONFUSIONS = 20
_LIKELIEST = 3


@dataclass(frozen=True)
class Confusion:
    """Test samples of all runs together, by true class and predicted class.

    Attributes:
        rows: class, and for each class the count and a shade in [0, 1]; empty where there are many classes.
        often: class, what it was taken for, count, share of the class; the most frequent confusions first.
    """

    classes: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    often: list[tuple[str, str, int, float]]


@dataclass(frozen=True)
class Example:
    """A test sample with the network's prediction and the spikes of some of its neurons.

    Attributes:
        picture: as a data URI.
        confidences: of the likeliest classes at the end, after each step.
        spikes: SVG path in a box of T x (layers x units).
        rates: of each layer, over all steps.
    """

    picture: str
    place: int
    label: str
    answer: str
    right: bool
    confidences: list[tuple[str, list[float]]]
    spikes: str
    rates: list[tuple[str, float]]
    T: int
    units: int


def confusion(counts: Tensor, classes: list[str]) -> Confusion:
    """The confusions from a matrix of counts [true class, predicted class]."""
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    wrong = counts.clone().fill_diagonal_(0).flatten()
    order = wrong.argsort(descending=True, stable=True)[:_MOST_CONFUSIONS].tolist()
    places = [(*divmod(k, len(classes)), int(wrong[k])) for k in order if wrong[k]]
    often = [(classes[i], classes[j], n, float(shares[i, j])) for i, j, n in places]
    if len(classes) > _LARGEST_MATRIX:
        return Confusion(classes, [], often)
    shades = shares.sqrt()  # or a confusion of a few per cent could not be seen
    rows = [list(zip(n, s, strict=True)) for n, s in zip(counts.tolist(), shades.tolist(), strict=True)]
    return Confusion(classes, list(zip(classes, rows, strict=True)), often)


def confusion_of_pairs(listed: Sequence[Sequence[int]], classes: list[str]) -> Confusion:
    """The confusions from rows of true class, predicted class and count."""
    pairs, samples = Counter[tuple[int, int]](), Counter[int]()
    for label, found, count in listed:
        pairs[label, found] += count
        samples[label] += count
    wrong = Counter({pair: count for pair, count in pairs.items() if pair[0] != pair[1]}).most_common(_MOST_CONFUSIONS)
    often = [(classes[i], classes[j], n, n / samples[i]) for (i, j), n in wrong if n]
    return Confusion(classes, [], often)


def examples(kept: Examples, classes: list[str]) -> Iterator[Example]:
    """The samples in a run folder, prepared for the page."""
    steps = torch.arange(1, kept.logits.shape[1] + 1).view(-1, 1)
    for k, logits in enumerate(kept.logits):
        confidences = (logits.cumsum(0) / steps).softmax(1)
        likely = confidences[-1].argsort(descending=True, stable=True)[:_LIKELIEST].tolist()
        _, units, T = kept.spikes[k].shape
        fired = kept.spikes[k].flatten(0, 1).nonzero().tolist()
        yield Example(
            _data_uri(kept.pictures[k]),
            int(kept.index[k]),
            classes[int(kept.labels[k])],
            classes[likely[0]],
            likely[0] == int(kept.labels[k]),
            [(classes[c], confidences[:, c].tolist()) for c in likely],
            "".join(f"M{t + 0.06:.2f} {unit + 0.5}h.88" for unit, t in fired),
            list(zip(map(short_path, kept.layers), kept.rates[k].mean(1).tolist(), strict=True)),
            T,
            units,
        )


def _data_uri(picture: Tensor) -> str:
    """A picture [3, H, W] uint8 as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
