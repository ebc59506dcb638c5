"""Classes of images and recordings by a trained network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spikerate.data import LARGEST_SIDE, Units, read_sample
from spikerate.evaluate import over_time
from spikerate.record import RunFolder
from spikerate.rules import BPTT
from spikerate.train import build_network


@dataclass(frozen=True)
class Prediction:
    """What a network says of a file: classes and their confidences, the likeliest first."""

    file: Path
    ranking: list[tuple[str, float]]


def predict(folder: RunFolder, files: Sequence[Path], weights: str, device: torch.device) -> Iterator[Prediction]:
    """The network of a run on files that are like the samples it was trained on, one after the other.

    A confidence is the softmax of the mean logits over all time steps; it is not calibrated.

    Raises:
        ValueError: the run has no weights, or does not say what its data were, or a file is broken.
    """
    run = folder.config()
    classes, shape, units = _card(folder)
    network = build_network(run, len(classes), shape, device)
    folder.load_weights(weights, network)
    network.eval()
    for file in files:
        x = units.normalize(units.scale(read_sample(file, run.data, run.T).unsqueeze(0).to(device)))
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            logits = BPTT()(network, over_time(x, run.T)).rate[0]
        confidence, order = logits.float().softmax(0).sort(descending=True)
        names = [classes[k] for k in order.tolist()]
        yield Prediction(file, list(zip(names, confidence.tolist(), strict=True)))


def _card(folder: RunFolder) -> tuple[list[str], tuple[int, int, int], Units]:
    """Classes, shape and units of the samples that a run was trained on, as its record says."""
    try:
        card = folder.about()["data"]
        c, h, w = map(int, card["shape"])
        units = Units(tuple(map(float, card["mean"])), tuple(map(float, card["std"])), float(card["unit"]))
        sides = 1 <= min(h, w) <= max(h, w) <= LARGEST_SIDE
        if not (len(units.mean) == len(units.std) == c and min(*units.std, units.unit) > 0 and sides):
            raise ValueError("the numbers do not go together")
        return [str(name) for name in card["classes"]], (c, h, w), units
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder.path / 'run.json'} does not say what its samples are ({error!r}): it is altered, or of another version"
        ) from error
