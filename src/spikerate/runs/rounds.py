"""Whole runs in Python, as on the command line: train with all rounds, train several seeds, resume, reproduce.

    run = preset("digits-esd").run
    folder = train(run, Path("runs/mine"))
    folder.result()["test_accuracy"]

If torchrun has started several processes, each of them calls the same function. A signal that asks to stop, such as
Control-C, ends a run after the current step with everything saved, by raising `Interrupted`; `resume` continues it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spikerate.data import DataSet, entry_of, steps_per_epoch
from spikerate.runs.audience import Audience, Nobody
from spikerate.runs.config import Run
from spikerate.runs.experiment import begin, check_fits, check_shared, perform, use_threads_of
from spikerate.runs.presets import headline
from spikerate.runs.record import RunFolder, check_free, check_name, compare, sole_writer
from spikerate.runs.reopen import load_data, load_data_again, settings_again
from spikerate.runs.start import Start
from spikerate.runs.train import pick_device
from spikerate.system import environment
from spikerate.system.codec import Own, encode, flat, named_again
from spikerate.system.dist import Ranks, process_group, ranks_from_environment, restarted
from spikerate.system.files import inside
from spikerate.system.interrupt import Interrupt, Interrupted

_MINUTES = 10.0
"""Largest time between two checkpoints."""


@dataclass(frozen=True)
class Repetition:
    """The comparison of a round of a run with the same round of its repetition.

    Attributes:
        original, again: the folders of the two.
        differing: metric -> the first epoch in which it differs, or "test", and both values.
    """

    original: RunFolder
    again: RunFolder
    differing: Mapping[str, tuple[Any, Any, Any]]

    @classmethod
    def of(cls, original: RunFolder, again: RunFolder) -> Repetition:
        """Compare two finished runs.

        Raises:
            ValueError: a file of one of them is missing or broken.
        """
        kept = ([*folder.metrics(), folder.result() | {"epoch": "test"}] for folder in (original, again))
        differing = compare(*([dict(flat(row)) for row in rows] for rows in kept))
        differing.pop("test_interval_95", None)  # it follows from the accuracy
        return cls(original, again, differing)

    @property
    def agrees(self) -> bool:
        """Whether all metrics agree."""
        return not self.differing


def train(
    run: Run,
    path: Path,
    about: Mapping[str, Any] | None = None,
    start: Start | None = None,
    audience: Audience = Nobody(),
    save_minutes: float = _MINUTES,
) -> RunFolder:
    """Train a run with all its rounds, and write it to a folder.

    Args:
        run: the settings.
        path: the folder of the run, which does not exist yet or is empty.
        about: further entries of `run.json`: `preset` and `command`, as texts.
        start: initial weights of the first round; None to draw them from the seed.
        audience: receives messages and progress.
        save_minutes: largest time between checkpoints; there is also one after every epoch.

    Raises:
        ValueError: settings, data and network do not fit together, or the folder is in use.
        Interrupted, NotFinite, SaveError: as `Trainer.train`.
        LostRank: another process has ended, or does not answer.
    """
    about = dict(about or {})
    _check_free(path)
    with _joined(run) as ranks:
        data = load_data(run, audience, ranks)
        check_fits(run, data, ranks)
        about |= _init(start, run, data, audience)
        with _writing(path, ranks, audience):
            folder = begin(path, run, data, about, ranks)
            audience.begun(folder)
            _perform(str(about.get("preset", "")), run, data, folder, audience, save_minutes, ranks, start=start)
    return folder


def train_seeds(
    run: Run,
    seeds: Sequence[int],
    base: Path,
    about: Mapping[str, Any] | None = None,
    start: Start | None = None,
    audience: Audience = Nobody(),
    save_minutes: float = _MINUTES,
) -> dict[int, RunFolder]:
    """Train a run once for each seed, one after the other. The same call again continues where it stopped.

    Each process that torchrun has started trains its share of the seeds, so other folders may not be finished yet.

    Args:
        run: the settings; its seed is replaced.
        seeds: the seeds.
        base: the folder of the run folders.
        about: as for `train`.
        start: as for `train`.
        audience: as for `train`.
        save_minutes: as for `train`.

    Returns:
        seed -> run folder.

    Raises:
        ValueError: as `train`, or a folder contains a run with other settings.
        Interrupted, NotFinite, SaveError: as `train`.
    """
    ranks, about = ranks_from_environment(), dict(about or {})
    check_name(base)
    folders = {seed: RunFolder(inside(base, f"seed{seed}"), Own.of(run)) for seed in seeds}
    for seed in list(seeds)[ranks.rank :: ranks.n]:
        own, folder = replace(run, seed=seed), folders[seed]
        if folder.stands:
            init = folder.about().get("init") or {}
            if folder.config() != own or init.get("sha256") != (start.sha256 if start else None):
                raise ValueError(f"{folder.path} contains a run with other settings: choose another folder by --out")
        if folder.result():
            continue
        data, alone = load_data(own, audience), Ranks(local=ranks.local)
        check_fits(own, data)
        about |= _init(start, own, data, audience)
        with _writing(folder.path, alone, audience):
            folder = folder if folder.stands else begin(folder.path, own, data, about)
            audience.begun(folder)
            name = ", ".join(filter(None, (about.get("preset"), f"seed {seed}")))
            _perform(name, own, data, folder, audience, save_minutes, alone, about.get("command"), start)
    return folders


def resume(
    folder: RunFolder,
    data: Path | None = None,
    device: str | None = None,
    audience: Audience = Nobody(),
    save_minutes: float = _MINUTES,
) -> RunFolder:
    """Continue a run that was stopped, from its last checkpoint.

    The result is bit-identical to that of a run that never stopped (same machine, threads and versions).

    Args:
        folder: the folder of the run, or of one of its rounds.
        data: folder of the data set, if it has moved.
        device: another device than before.
        audience: as for `train`.
        save_minutes: as for `train`.

    Raises:
        ValueError: the run, its settings or its data are not the same as before.
        Interrupted, NotFinite, SaveError, LostRank: as `train`.
    """
    folder = whole(folder)
    folder.check_settings()
    record = folder.record()
    run = settings_again(record, audience, data, device)
    with _joined(run) as ranks:
        use_threads_of(folder)
        found = load_data_again(run, record, audience, ranks)
        with _writing(folder.path, ranks, audience):
            about = record.about
            with ranks.barrier():
                if ranks.first:
                    now = {"at": environment.now(), "environment": environment.card()}
                    folder.amend(resumed=[*(about.get("resumed") or []), now])
            check_shared(folder.path, ranks)
            audience.begun(folder)
            begun = folder.rounds(run)[0][1].has_state
            start = Start.again(about["init"], own=folder.own) if about.get("init") and not begun else None
            name = str(about.get("preset", folder.path))
            _perform(name, run, found, folder, audience, save_minutes, ranks, start=start)
    return folder


def reproduce(
    original: RunFolder,
    path: Path,
    command: str | None = None,
    data: Path | None = None,
    init: Path | None = None,
    audience: Audience = Nobody(),
) -> list[Repetition]:
    """Train a finished run again, and compare every metric.

    Args:
        original: the folder of the finished run.
        path: the folder of the new run.
        command: the command line, for `run.json`.
        data: folder of the data set, if it has moved.
        init: the weights that the run started from, if they have moved.
        audience: as for `train`.

    Returns:
        a `Repetition` for each round; an empty list on ranks other than 0.

    Raises:
        ValueError: the run is not finished, is a round of another run, or its settings, data or initial weights are not the
            same as before.
        Interrupted, NotFinite, SaveError, LostRank: as `train`.
    """
    if whole(original) != original:
        raise ValueError(f"{original.path} is one round of a run: give the folder of the run, {whole(original).path}")
    if not original.result():
        raise ValueError(
            f"{original.path} is not finished: spikerate train --resume {shlex.quote(str(original.path))} first"
        )
    original.check_settings()
    record = original.record()
    run, then = settings_again(record, audience, data), record.about
    _check_free(path)
    start = Start.again(then["init"], init, original.own) if then.get("init") else None
    about = {"preset": then.get("preset"), "command": command, "repeats": then.get("repeats") or then.get("command")}
    with _joined(run) as ranks:
        use_threads_of(original)
        found = load_data_again(run, record, audience, ranks)
        check_fits(run, found, ranks)
        about |= _init(start, run, found, audience)
        with _writing(path, ranks, audience):
            again = begin(path, run, found, about, ranks)
            audience.begun(again)
            _perform(f"{original.path} again", run, found, again, audience, _MINUTES, ranks, start=start)
        if not ranks.first:
            return []
        pairs = zip(original.rounds(run), again.rounds(run), strict=True)
        return [Repetition.of(one, other) for (_, one), (_, other) in pairs]


def whole(folder: RunFolder) -> RunFolder:
    """The folder of the whole run, given that folder or the folder of one of its rounds."""
    return RunFolder.open(folder.path.absolute().parent, folder.own) if "round" in folder.about() else folder


def _init(start: Start | None, run: Run, data: DataSet, audience: Audience) -> dict[str, Any]:
    """The entry `init` of `run.json`; reports which parts of the network are not initialised from these weights."""
    if start is None:
        return {}
    with torch.device("meta"):
        network = run.rounds[0].build(len(data.classes), data.shape)
    record = start.onto(data.classes).record(network)
    fresh = f"; fresh: {', '.join(record['fresh'])}" if record["fresh"] else ""
    audience.say(f"starting from the weights of {start.path}{fresh}")
    return {"init": record}


@contextmanager
def _joined(run: Run) -> Iterator[Ranks]:
    """The connected ranks, after checking that all have the same settings and the same code."""
    launched_here = ranks_from_environment()
    if run.batch // run.accumulate < 2 * launched_here.n:
        raise ValueError(
            f"batch is {run.batch} with accumulate={run.accumulate} on {launched_here.n} ranks: "
            "batch norm needs at least two images in each part on each rank"
        )
    gpu = pick_device(run.device, launched_here.local).type == "cuda"
    with process_group(gpu, slow_start=run.compile) as ranks:
        anywhere = replace(run, data=replace(run.data, path=None, cache=None, workers=None))  # may differ between hosts
        ranks.check_same({**environment.versions(), "code": environment.source(), "run": encode(anywhere)})
        yield ranks


def _writing(path: Path, ranks: Ranks, audience: Audience) -> AbstractContextManager[None]:
    """The lock on the run folder, which rank 0 holds for all ranks."""
    return sole_writer(path, audience.say) if ranks.first else nullcontext()


def _check_free(path: Path) -> None:
    """Check the folder before the data are read; only on rank 0, which may have created it when the others look."""
    if ranks_from_environment().first and not restarted():
        check_free(path)


def _perform(
    name: str,
    run: Run,
    data: DataSet,
    folder: RunFolder,
    audience: Audience,
    save_minutes: float,
    ranks: Ranks,
    again: str | None = None,
    start: Start | None = None,
) -> None:
    """Train the rounds of a run that are not finished, the first from `start`; `data` has the frames of the last round."""
    audience.title(": ".join(filter(None, (name, headline(name, run)))))
    again = again or f"spikerate train --resume {shlex.quote(str(folder.path))}{named_again(run)}"
    about = {entry: value for entry, value in folder.about().items() if entry in ("preset", "command", "repeats")}
    rounds, frames = folder.rounds(run), run.T
    before: Start | RunFolder | None = start.onto(data.classes) if start else None
    try:
        for k, (own, place) in enumerate(rounds, 1):
            title, stands = f"round {k} of {len(rounds)}" if run.before else "", ranks.broadcast(place.stands)
            over = stands == "finished" and place != folder
            if stands:
                place.check_settings()
            if title:
                audience.title(f"{title}: {own.in_words}{', finished' if over else ''}")
            if not over:
                if entry_of(run.data).recorded and frames != own.T:
                    data, frames = load_data(own, audience, ranks), own.T
                if not stands:
                    begin(place.path, own, data, about | {"round": title}, ranks)
                stop = _perform_round(own, data, place, audience, save_minutes, ranks, before, title, place == folder)
                if place != folder and ranks.all_max(int(stop.asked)):
                    raise Interrupted(stop.signal)
            before = place
    except Interrupted as stopped:
        audience.say(f"stopped ({stopped}), and saved; continue by: {again}")
        raise
    if run.before and ranks.first:
        audience.finished(rounds)


def _perform_round(
    run: Run,
    data: DataSet,
    folder: RunFolder,
    audience: Audience,
    save_minutes: float,
    ranks: Ranks,
    start: Start | RunFolder | None,
    title: str,
    last: bool,
) -> Interrupt:
    """Train one round; returns the `Interrupt` that tells whether it was asked to stop meanwhile."""
    audience.say(
        f"{len(data.train):,} samples to train on, {len(data.validation):,} for validation, {len(data.test):,} to test; "
        f"{run.in_words} of {run.batch} samples a batch, on {pick_device(run.device, ranks.local)}"
        + (f", {ranks.n} ranks" if ranks.n > 1 else ""),
    )
    steps, rows = steps_per_epoch(data.train, run.batch), folder.rows() if ranks.first else []
    with Interrupt() as stop, audience.training(run, folder, steps, title, rows) as onlooker:
        state, measured = perform(run, data, folder, onlooker, ranks, stop, save_minutes, onlooker.wait, start)
    audience.trained(run, folder, state, measured, last)
    return stop
