"""Classification of images and recordings by a trained network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spikerate.data import read_sample
from spikerate.measure.evaluate import over_time
from spikerate.measure.health import CheckFinite, NotFinite
from spikerate.rules import BPTT
from spikerate.runs.record import Record
from spikerate.runs.train import place
from spikerate.runs.trained import Trained
from spikerate.system.modes import autocast


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for a file: classes with their confidences, the most likely first."""

    file: Path
    ranking: list[tuple[str, float]]


def predict(
    record: Record, files: Sequence[Path], weights: str, device: torch.device, check_finite: bool = False
) -> Iterator[Prediction]:
    """Classify files of the kind that the network of a run was trained on, one after the other.

    The confidence is the softmax of the mean logits over all time steps, with the factor of the loss; it is not calibrated.

    Raises:
        ValueError: the run has no weights, its record does not describe the data, or a file is broken.
        NotFinite: with `check_finite`, a value in the network or a file is infinite or not a number.
    """
    rule = CheckFinite(BPTT()) if check_finite else BPTT()
    run, trained = record.run, Trained.of_run(record, weights)
    network, classes, units = place(trained.network, device), trained.card.classes, trained.card.units
    for file in files:
        x = units.normalize(units.scale(read_sample(file, run.data, run.T).unsqueeze(0).to(device)))
        with torch.no_grad(), autocast(device, run.precision):
            try:
                logits = rule(network, over_time(x, run.T)).rate[0]
            except NotFinite as error:
                raise NotFinite(f"{file}: {error}") from error
        confidence, order = (run.loss.scale * logits.float()).softmax(0).sort(descending=True)
        names = [classes[k] for k in order.tolist()]
        yield Prediction(file, list(zip(names, confidence.tolist(), strict=True)))
