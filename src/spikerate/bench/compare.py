"""Benchmark of a training step by several methods: each cell (a method and T) has its own process, and they take turns."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from spikerate.bench.worker import CHECKPOINTED, OF_ANN, PARTS, Cell, Setting
from spikerate.system.codec import encode
from spikerate.system.progress import Track, untracked

Command = Sequence[str]
_OURS = (sys.executable, "-c", "from spikerate.bench.worker import serve, step_of; serve(step_of)")


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Cost:
    """The cost of a training step of a cell.

    Attributes:
        cell: method and setting.
        compiled: whether the network is compiled.
        note: a remark, or empty.
        first: seconds of the first step, including compilation.
        times: for each step, part -> seconds.
        to_ann: time relative to the ANN that is as compiled as this, the median over the rounds; None without an ANN.
        peak_mib: peak memory (`spikerate.bench.worker.Memory`); None if it can't be measured.
        reserved_mib: peak memory that the allocator of a GPU has reserved.
        saved_mib: memory that the forward pass saves for the backward pass.
        flops: number of operations.
    """

    cell: Cell
    compiled: bool
    note: str
    first: float
    times: tuple[Mapping[str, float], ...]
    to_ann: float | None
    peak_mib: float | None
    reserved_mib: float | None
    saved_mib: float
    flops: int

    @property
    def step(self) -> Spread:
        """The seconds of the whole step."""
        return Spread.of(_whole_steps(self.times))

    @property
    def parts(self) -> dict[str, Spread]:
        """The seconds of forward pass, backward pass and optimiser."""
        return {part: Spread.of([time[part] for time in self.times]) for part in PARTS}

    @property
    def images_per_second(self) -> float:
        return self.cell.setting.batch / self.step.median

    @property
    def to_floor(self) -> float | None:
        """Time relative to the lower bound `Cell.floor`, of as many passes of the ANN."""
        return None if self.to_ann is None else self.to_ann / self.cell.floor

    @property
    def compile_seconds(self) -> float | None:
        """How much longer the first step took than the median step."""
        return max(0.0, self.first - self.step.median) if self.compiled else None

    def record(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "compiled": self.compiled,
            "note": self.note,
            "step_ms": _in_ms(self.step),
            **{f"{part}_ms": _in_ms(spread) for part, spread in self.parts.items()},
            "images_per_second": round(self.images_per_second, 3),
            "to_ann": self.to_ann,
            "to_floor": self.to_floor,
            "compile_seconds": self.compile_seconds,
            "first_step_ms": _ms(self.first),
            "peak_mib": self.peak_mib,
            "reserved_mib": self.reserved_mib,
            "saved_mib": self.saved_mib,
            "flops": self.flops,
            "times_ms": {part: [_ms(time[part]) for time in self.times] for part in PARTS},
        }


@dataclass(frozen=True)
class Outcome:
    """The cost of a cell, or None and the reason why its process died."""

    cell: Cell
    cost: Cost | None
    died: str

    def record(self) -> dict[str, Any]:
        """JSON types."""
        found = self.cost.record() if self.cost else {}
        cell = self.cell
        about = {"method": cell.method, "T": cell.T, "asked": cell.how, "floor": cell.floor, "died": self.died}
        return {**about, **found}


@dataclass(frozen=True)
class FirstUse:
    """Seconds until the end of the first step in a fresh process, with a cache of compiled code of its own.

    Attributes:
        cell: method and setting.
        empty: with an empty cache; None if the process died.
        warm: with the cache that the one before has left.
    """

    cell: Cell
    empty: float | None
    warm: float | None

    def record(self) -> dict[str, Any]:
        """JSON types."""
        about = {"method": self.cell.method, "T": self.cell.T, "asked": self.cell.how}
        return {**about, "empty_seconds": self.empty, "warm_seconds": self.warm}


class Worker:
    """The process of a cell. It works only while it handles a request; after it has died, requests are ignored.

    Attributes:
        answers: all answers so far.
        died: why the process died, in a sentence; empty while it lives.
    """

    def __init__(self, cell: Cell, command: Command, environment: Mapping[str, str] | None = None) -> None:
        self.cell = cell
        self.answers: list[dict[str, Any]] = []
        self.died = ""
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, question: str) -> None:
        """Send a request, and wait for the answer."""
        if self.died:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(question, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        try:
            answer = dict(json.loads(line))
        except (ValueError, TypeError):
            answer = {"died": f"it wrote {line.strip()[:60]!r}, which is not an answer" if line else self._last_words()}
        if "died" in answer:
            self.died = answer["died"]
        else:
            self.answers.append(answer)

    def _last_words(self) -> str:
        status = self._process.wait()
        if status < 0:
            return f"it was ended by {signal.Signals(-status).name}, perhaps for lack of memory"
        self._errors.seek(0)
        lines = self._errors.read().split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"it ended with status {status}")


def cells(methods: Sequence[str], T: Sequence[int], *settings: Setting) -> dict[Cell, Command]:
    """The cells of our own methods, every method at every T and the ANN once, and the command that starts each.

    What PyTorch's compiler can't compile is there once if there are several settings, as it comes.

    Raises:
        ValueError: a method is unknown, or a number is out of range.
    """
    found = [
        Cell(method, t, setting)
        for setting in settings
        for method in methods
        if not (method.partition("+")[0] == CHECKPOINTED and setting.compile and len(settings) > 1)
        for t in ((1,) if method in OF_ANN else T)
    ]
    for cell in found:
        cell.run()  # checks the settings
    return dict.fromkeys(found, _OURS)


def peer_cells(peers: Sequence[tuple[str, Path]], T: Sequence[int], *settings: Setting) -> dict[Cell, Command]:
    """The cells of other libraries: (a Python that has the library, a script NAME_cell.py that serves as a cell).

    Raises:
        ValueError: a program or a script does not exist.
    """
    for python, script in peers:
        if not script.is_file():
            raise ValueError(f"{script} does not exist: give a script that serves as a cell")
        if not shutil.which(python):
            raise ValueError(f"{python} is no program: give a Python that has the library of {script}")
    return {
        Cell(script.stem.removesuffix("_cell"), t, setting): (python, str(script))
        for setting in settings
        for python, script in peers
        for t in T
    }


def both_ways(setting: Setting) -> tuple[Setting, Setting]:
    """The setting as it comes and compiled."""
    return replace(setting, compile=False), replace(setting, compile=True)


def first_uses(commands: Mapping[Cell, Command], say: Callable[[str], None], track: Track = untracked) -> list[FirstUse]:
    """Start each cell twice, in processes that share a cache of compiled code with nobody else."""
    found = []
    for cell, command in track(iter(commands.items()), "first use", len(commands)):
        with tempfile.TemporaryDirectory() as cache:
            places = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": str(Path(cache) / "triton")}
            empty, warm = (_first(cell, command, places, say) for _ in range(2))
        found.append(FirstUse(cell, empty, warm))
    return found


def _first(cell: Cell, command: Command, environment: Mapping[str, str], say: Callable[[str], None]) -> float | None:
    with Worker(cell, command, environment) as worker:
        worker.ask(json.dumps(encode(cell)))
        say(f"first use of {cell}: {_beginning(worker)}")
        return None if worker.died else float(worker.answers[0]["first"])


def measure(
    commands: Mapping[Cell, Command], steps: int, say: Callable[[str], None], track: Track = untracked
) -> list[Outcome]:
    """Start all cells, then let them do one step each in turn, for `steps` rounds. Returns outcomes in the same order.

    Only one cell works at a time, so that disturbances of the machine affect all cells alike.

    Args:
        commands: cell -> command that starts its process.
        steps: number of rounds.
        say: called with a message when a cell is ready.
        track: shows the progress.
    """
    with contextlib.ExitStack() as stack:
        workers = []
        for cell, command in track(iter(commands.items()), "warming up", len(commands)):
            worker = stack.enter_context(Worker(cell, command))
            worker.ask(json.dumps(encode(cell)))
            say(f"{cell}: {_beginning(worker)}")
            workers.append(worker)
        for _ in track(iter(range(steps)), "rounds", steps):
            for worker in workers:
                worker.ask("step")
        for worker in workers:
            worker.ask("count")
    alive = {worker.cell: worker for worker in workers if not worker.died}
    return [_outcome(worker, alive.get(worker.cell.ann)) for worker in workers]


def _beginning(worker: Worker) -> str:
    if worker.died:
        return f"died: {worker.died}"
    (ready,) = worker.answers
    note = f"; {ready['note']}" if ready["note"] else ""
    return f"first step after {ready['first']:.1f} s{', compiled' if ready['compiled'] else ''}{note}"


def _outcome(worker: Worker, ann: Worker | None) -> Outcome:
    if worker.died:
        return Outcome(worker.cell, None, worker.died)
    ready, *times, counts = worker.answers
    to_ann = None
    if ann:
        pairs = zip(_whole_steps(times), _whole_steps(ann.answers[1:-1]), strict=True)
        to_ann = statistics.median(own / other for own, other in pairs)
    return Outcome(worker.cell, Cost(worker.cell, **ready, times=tuple(times), to_ann=to_ann, **counts), "")


def _whole_steps(times: Sequence[Mapping[str, float]]) -> list[float]:
    return [sum(time.values()) for time in times]


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 4)


def _in_ms(spread: Spread) -> dict[str, float]:
    return {"median": _ms(spread.median), "min": _ms(spread.low), "max": _ms(spread.high)}
