"""A single training from its settings to its result: trained, evaluated once on the test set, and recorded."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikerate.data import Augment, DataSet, Samples, epoch_batches, plain_batches
from spikerate.gradients.agreement import Comparison, Fidelity
from spikerate.measure.averaging import VIEWS, Averaging, check_averaging
from spikerate.measure.energy import Energy
from spikerate.measure.evaluate import Accuracy, Answers, answers, over_time
from spikerate.measure.meter import Ledger, Meter, Tally, Trains
from spikerate.rules import BPTT
from spikerate.runs.config import Run
from spikerate.runs.estimate import resolution_macs
from spikerate.runs.examples import Examples
from spikerate.runs.record import RunFolder
from spikerate.runs.state import Row, State
from spikerate.runs.train import Start, Trainer, Watch
from spikerate.signal import RuleRefused
from spikerate.system import environment
from spikerate.system.codec import Own
from spikerate.system.dist import Ranks, restarted
from spikerate.system.interrupt import Interrupt
from spikerate.system.modes import autocast
from spikerate.system.progress import Track, untracked

_SEEN_SECONDS = 5
EXAMPLES = 8
"""Number of test samples whose spikes are kept in a run folder."""

LARGEST_CONFUSION = 1000
"""With more classes, `result.json` has a sparse list instead of the confusion matrix: true class, predicted class, count."""


@dataclass(frozen=True)
class Measured:
    """Results on the test set: predictions, firing rates of the layers, and the cost of an image.

    Attributes:
        averaged: the same with test-time averaging, if it was asked for; spikes and operations of an image are those of all
            its views.
    """

    answers: Answers
    ledger: Ledger
    energy: Energy
    averaged: Averaged | None = None

    @property
    def at_step(self) -> list[Accuracy]:
        """The accuracy after each time step."""
        return self.answers.at_step

    @property
    def accuracy(self) -> Accuracy:
        """The accuracy after all time steps."""
        return self.at_step[-1]

    @property
    def spikes(self) -> float:
        """Spikes of all neurons for an image, the mean."""
        return self.ledger.total() / self.accuracy.n

    def record(self, network: nn.Module, best: Row) -> dict[str, Any]:
        """The entries of `result.json`."""
        return {
            "epoch": best["epoch"],
            "validation_accuracy": best.get("validation"),
            "test_images": self.accuracy.n,
            **self.test_record(),
            "firing_rate": self.ledger.mean_rate(),
            "firing_rates": self.ledger.rates(network),
            "firing_rates_at_step": self.ledger.rates_at_step(network),
            **self._confusion(),
            **self.energy.record(),
            **({"averaged": self.averaged.record()} if self.averaged else {}),
        }

    def test_record(self) -> dict[str, Any]:
        """Accuracies and spikes, as in `result.json`."""
        return {
            "test_accuracy": self.accuracy.value,
            "test_interval_95": list(self.accuracy.interval()),
            "test_accuracy_at_step": [a.value for a in self.at_step],
            "spikes_per_image": self.spikes,
        }

    def _confusion(self) -> dict[str, Any]:
        if self.answers.num_classes > LARGEST_CONFUSION:
            return {"confusions": self.answers.confusions().tolist()}
        return {"confusion": self.answers.confusion().tolist()}


@dataclass(frozen=True)
class Averaged:
    """Results with test-time averaging.

    Attributes:
        averaging: over which views.
        validation: accuracy on the validation set, by which it is decided whether to average; None if there is no such set.
        measured: results on the test set.
    """

    averaging: Averaging
    validation: Accuracy | None
    measured: Measured

    @property
    def views(self) -> int:
        """Number of views, and so of passes through the network."""
        return len(VIEWS[self.averaging])

    def record(self) -> dict[str, Any]:
        """The entry of `result.json`."""
        validation = None if self.validation is None else self.validation.value
        own = {"averaging": self.averaging, "views": self.views, "validation_accuracy": validation}
        return own | self.measured.test_record() | {"energy": self.measured.energy.record()["energy"]}


def measure(
    network: nn.Module,
    data: DataSet,
    run: Run,
    ranks: Ranks = Ranks(),
    T: int | None = None,
    track: Track = untracked,
    check_finite: bool = False,
) -> Measured:
    """Evaluate a network on the test set for T time steps, by default those of the run.

    If the run has test-time averaging, this is done too, on the validation set as well. The samples are divided among the
    ranks. `check_finite` as for `answers`.

    Raises:
        ValueError: the samples can't be averaged over these views.
    """
    device, steps = next(network.parameters()).device, T or run.T
    check_averaging(run.averaging, data.shape)

    def answered(samples: Samples, rule: Any, averaging: Averaging | None) -> Answers:
        own = samples[ranks.share(len(samples))]
        given = answers(network, data, own, steps, run.precision, rule, run.batch, device, track, check_finite, averaging)
        found, labels = (ranks.gather_shares(part, len(samples)) for part in (given.found, given.labels))
        return Answers(found, labels, given.num_classes)

    def metered(averaging: Averaging | None) -> Measured:
        ledger, tally = Ledger(), Tally.of(network)
        given = answered(data.test, Meter(ledger, tally), averaging)
        energy = tally.totalled(ranks.total).energy(len(data.test), steps)
        return Measured(given, ledger.totalled(ranks.total), energy)

    plain = metered(None)
    if run.averaging is None:
        return plain
    held_out = answered(data.validation, BPTT(), run.averaging).at_step[-1] if len(data.validation) else None
    return replace(plain, averaged=Averaged(run.averaging, held_out, metered(run.averaging)))


def different_spikes(
    one: nn.Module, other: nn.Module, data: DataSet, run: Run, T: int | None = None, track: Track = untracked
) -> tuple[int, int]:
    """How many outputs of neurons differ between two networks with the same neurons on the test set, and of how many."""
    device = next(one.parameters()).device
    batches = plain_batches(data, data.test, run.batch, device)
    differ = places = 0
    with torch.no_grad(), autocast(device, run.precision):
        for x, _ in track(batches, "comparing spikes", -(-len(data.test) // run.batch)):
            both = Trains(), Trains()
            for network, trains in zip((one, other), both, strict=True):
                Meter(trains)(network, over_time(x, T or run.T))
            for (_, a), (_, b) in zip(*(trains.kept for trains in both), strict=True):
                differ += int((a != b).count_nonzero())
                places += a.numel()
    return differ, places


def measure_gradients(
    network: nn.Module, data: DataSet, run: Run, compare: Comparison, T: int | None = None, track: Track = untracked
) -> list[Fidelity]:
    """How well gradients agree on the first training samples (in the run's order, without augmentation).

    Args:
        T: time steps; by default those of the run.

    Raises:
        ValueError: there are fewer samples than asked for, or a gradient is not finite.
    """
    if compare.samples > len(data.train):
        raise ValueError(f"samples is {compare.samples}, but there are {len(data.train)} to train on: give that at most")
    device = next(network.parameters()).device
    (part,) = next(epoch_batches(data, compare.samples, Augment(), run.seed, epoch=0, device=device))
    return compare(network, over_time(part.x, T or run.T), part.labels, run.precision, track)


def data_card(data: DataSet) -> dict[str, Any]:
    """The description of a data set in `run.json`."""
    sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    return {
        "name": data.name,
        "licence": data.licence,
        "sizes": sizes,
        "shape": list(data.shape),
        "mean": list(data.units.mean),
        "std": list(data.units.std),
        "unit": data.units.unit,
        "classes": list(data.classes),
        "split": data.split,
        "drawn": {part: " ".join(map(str, index)) for part, index in data.drawn.items()},
        "skipped": list(data.skipped),
        "notes": list(data.notes),
        "sha256": data.checksums,
    }


def check_fits(run: Run, data: DataSet, ranks: Ranks = Ranks()) -> None:
    """Raise `ValueError` if network and data do not fit together; called before anything is written."""
    check_averaging(run.averaging, data.shape)
    for own in run.rounds:
        own.model.check(len(data.classes), data.shape, own.neuron)
        _check_rule(own, len(data.classes), data.shape)
        if own.resolutions:
            resolution_macs(own, data.shape, len(data.classes))
        if own.search is not None or own.loss.branches:
            with torch.device("meta"):
                network = own.build(len(data.classes), data.shape)
            if own.search is not None:
                own.search.check(network)
    smallest = min(run.batch, len(data.train)) // run.accumulate // ranks.n
    if smallest < 2:
        raise ValueError(
            f"{len(data.train)} training samples with accumulate={run.accumulate} on {ranks.n} ranks give parts of "
            f"{smallest}: batch norm needs at least two samples in each"
        )


def _check_rule(run: Run, num_classes: int, shape: tuple[int, int, int]) -> None:
    """Raise `RuleRefused` if a layer has no gradient under the rule.

    One step of one sample is run on the meta device, which computes shapes and no values.
    """
    with torch.device("meta"), torch.enable_grad():
        try:
            run.rule(run.build(num_classes, shape).eval(), torch.zeros(1, 1, *shape))
        except RuleRefused:
            raise
        except Exception:  # the user's code may need values, or more steps or samples: what is wrong, the training says
            return


def begin(path: Path, run: Run, data: DataSet, about: Mapping[str, Any], ranks: Ranks = Ranks()) -> RunFolder:
    """Create the folder of a new run, or open that of the same run if torchrun has restarted it.

    Raises:
        ValueError: network and data do not fit together, or the folder is in use or can't be written.
    """
    with ranks.barrier():
        check_fits(run, data, ranks)
        if ranks.first and not (restarted() and RunFolder(path).stands and RunFolder(path, Own.of(run)).config() == run):
            RunFolder.create(path, run, {**about, **_card(run, data, ranks)})
    path = Path(ranks.broadcast(str(path)))
    check_shared(path, ranks)
    return RunFolder.open(path, Own.of(run))


def check_shared(path: Path, ranks: Ranks) -> None:
    """Raise `ValueError` on every rank unless all ranks see what rank 0 has just written to the run folder."""
    end, record = time.monotonic() + _SEEN_SECONDS, RunFolder(path).run_file
    with ranks.barrier():
        while not record.is_file() and time.monotonic() < end:
            time.sleep(0.1)  # a file system over the network may show a new file a little later
    content = record.read_bytes() if record.is_file() else b""
    seen = ranks.gather((platform.node(), hashlib.sha256(content).hexdigest()))
    for rank, (host, digest) in enumerate(seen):
        if digest != seen[0][1]:
            raise ValueError(
                f"rank {rank} on {host} does not see the run folder {path} as rank 0 on {seen[0][0]} has written it: give "
                "--out with a folder on a file system that all hosts share"
            )


def use_threads_of(folder: RunFolder) -> None:
    """Use the number of threads that the run began with: another number changes the order of sums, and so their rounding."""
    threads = folder.about().get("environment", {}).get("threads")
    if isinstance(threads, int) and 1 <= threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)


def perform(
    run: Run,
    data: DataSet,
    folder: RunFolder,
    watch: Watch,
    ranks: Ranks = Ranks(),
    stop: Interrupt = Interrupt(),
    save_minutes: float = 10,
    track: Track = untracked,
    start: Start | None = None,
) -> tuple[State, Measured]:
    """Train from the last checkpoint in the folder, or from the start, and evaluate the best weights on the test set.

    Args:
        run: settings without earlier rounds.
        start: where initial weights come from if there is no checkpoint yet; by default they are drawn from the seed.

    Raises:
        as `Trainer.train`.
    """
    clock, joules = time.perf_counter(), environment.joules()
    state = Trainer(run, data, folder, watch, ranks, stop, save_minutes, start).train()
    with ranks.barrier():
        folder.load_weights("best", state.network)
    measured = measure(state.network, data, run, ranks, track=track, check_finite=True)
    with ranks.barrier():
        if ranks.first:
            after = environment.joules()
            used = None if joules is None or after is None else round(after - joules)
            wall = {"seconds": round(time.perf_counter() - clock, 1), "joules": used, "at": environment.now()}
            Examples.take(state.network, data, measured.answers.some(EXAMPLES), run).save(folder.path)
            folder.save_result(measured.record(state.network, state.best))
            folder.amend(finished=wall)
    return state, measured


def _card(run: Run, data: DataSet, ranks: Ranks) -> dict[str, Any]:
    return {
        "started": environment.now(),
        "ranks": ranks.n,
        "data": data_card(data),
        "source": environment.source(),
        "environment": environment.card(),
    }
