"""Piece 4: how many images a second the built-in augmentation hands to a device, beside what the networks take."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from pathlib import Path

import torch
from figures import Figures

from spikerate.data import Augment, Data, DataSet, epoch_batches, load, plain_batches

AUGMENTS = {
    "none": Augment(),
    "crop and flip": Augment(crop=4, flip=True),
    "crop, flip, AutoAugment, Cutout (cifar10-esd)": Augment(crop=4, flip=True, autoaugment="cifar10", cutout=16),
}


def images_a_second(data: DataSet, augment: Augment, batch: int, steps: int, device: torch.device) -> dict[str, float]:
    """Of the batches of an epoch after its first four."""
    batches = epoch_batches(data, batch, augment, seed=0, epoch=0, device=device)
    for _ in itertools.islice(batches, 4):
        pass
    start = now(device)
    n = sum(1 for _ in itertools.islice(batches, steps))
    seconds = now(device) - start
    return {"ms_a_batch": 1000 * seconds / n, "images_per_second": n * batch / seconds}


def evaluation(data: DataSet, device: torch.device) -> dict[str, float]:
    """Of the test images, in their order."""
    start = now(device)
    n = sum(len(y) for _, y in plain_batches(data, data.test, 256, device))
    return {"images_per_second": n / (now(device) - start)}


def now(device: torch.device) -> float:
    """The time when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    device, figures = torch.device(args.device), Figures(args.out)
    data = load(Data("digits") if args.data is None else Data("cifar10", path=args.data, validation=5000), 1).to(device)
    augments = {"crop (digits)": Augment(crop=1)} if args.data is None else AUGMENTS
    for (name, augment), store in itertools.product(augments.items(), ("device",)):
        for batch in (16,) if args.small else (128, 512):
            steps = 4 if args.small else 24
            figures.attempt(
                f"{name}, batch {batch}, on the {store}",
                lambda augment=augment, batch=batch, steps=steps: images_a_second(data, augment, batch, steps, device),
            )
    figures.attempt("evaluation", lambda: evaluation(dataclasses.replace(data, test=data.test[torch.arange(256)]), device))


if __name__ == "__main__":
    main()
