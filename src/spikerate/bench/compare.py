"""What a training step costs by each method, side by side: cells in processes of their own, which take turns."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from spikerate.bench.worker import PARTS, Cell, Setting
from spikerate.system.codec import encode
from spikerate.system.progress import Track, untracked

Command = Sequence[str]
_OURS = (sys.executable, "-c", "from spikerate.bench.worker import serve, training_step; serve(training_step)")


@dataclass(frozen=True)
class Spread:
    """The middle and the ends of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of one at least."""
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Cost:
    """What a training step of a cell costs.

    Attributes:
        cell: method and setting.
        compiled: whether the network is.
        note: what else there is to say.
        first: seconds of the first step, with the compilation.
        times: of each step, part -> seconds.
        to_ann: the step in those of the ANN, the median over the rounds; None without one.
        peak_mib: highest use of memory (`spikerate.bench.worker.Memory`); None where nothing tells.
        reserved_mib: the same of what the allocator of a GPU holds.
        saved_mib: what the forward pass saves for the backward pass.
        flops: operations.
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
        """Seconds of the whole step."""
        return Spread.of(_whole_steps(self.times))

    @property
    def parts(self) -> dict[str, Spread]:
        """Seconds of forward pass, backward pass and optimiser."""
        return {part: Spread.of([time[part] for time in self.times]) for part in PARTS}

    @property
    def images_per_second(self) -> float:
        return self.cell.setting.batch / self.step.median

    @property
    def to_floor(self) -> float | None:
        """The step in those that `Cell.floor` allows."""
        return None if self.to_ann is None else self.to_ann / self.cell.floor

    @property
    def compile_seconds(self) -> float | None:
        """What the first step took longer than the others."""
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
    """A cell's cost; or None, and of what it died."""

    cell: Cell
    cost: Cost | None
    died: str

    def record(self) -> dict[str, Any]:
        """JSON types."""
        found = self.cost.record() if self.cost else {}
        return {"method": self.cell.method, "T": self.cell.T, "floor": self.cell.floor, "died": self.died, **found}


class Worker:
    """A cell in its process, which works while it is asked; a dead one is asked nothing more.

    Attributes:
        answers: all it has said.
        died: of what, in a sentence; empty while it lives.
    """

    def __init__(self, cell: Cell, command: Command) -> None:
        self.cell = cell
        self.answers: list[dict[str, Any]] = []
        self.died = ""
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, errors="replace"
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, question: str) -> None:
        """Wait until it has answered."""
        if self.died:
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(question, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        try:
            answer = dict(json.loads(line))
        except (ValueError, TypeError):
            answer = {"died": f"it says {line.strip()[:60]!r}, which is no answer" if line else self._last_words()}
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


def cells(methods: Sequence[str], T: Sequence[int], setting: Setting) -> dict[Cell, Command]:
    """The cells of our own methods and the command for each, every method at every T, the ANN once.

    Raises:
        ValueError: a method is unknown, or a number is out of its range.
    """
    found = [Cell(method, t, setting) for method in methods for t in ((1,) if method == "ann" else T)]
    for cell in found:
        cell.run()  # which checks it
    return dict.fromkeys(found, _OURS)


def peer_cells(peers: Sequence[tuple[str, Path]], T: Sequence[int], setting: Setting) -> dict[Cell, Command]:
    """The cells of other libraries: (a Python that has the library, a script NAME_cell.py that serves as a cell).

    Raises:
        ValueError: one of them is not there.
    """
    for python, script in peers:
        if not script.is_file():
            raise ValueError(f"{script} does not exist: give a script that serves as a cell")
        if not shutil.which(python):
            raise ValueError(f"{python} is no program: give a Python that has the library of {script}")
    return {
        Cell(script.stem.removesuffix("_cell"), t, setting): (python, str(script)) for python, script in peers for t in T
    }


def measure(
    commands: Mapping[Cell, Command], steps: int, say: Callable[[str], None], track: Track = untracked
) -> list[Outcome]:
    """Start all cells, then let each do a step in turn, so many rounds; in the order of the cells.

    Only one cell works at a time, and what disturbs the machine meanwhile disturbs all of them.

    Args:
        commands: what starts the process of each cell.
        say: tells who waits what has been begun.
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
    ann = next((w for w in workers if w.cell.method == "ann" and not w.died), None)
    return [_outcome(worker, ann) for worker in workers]


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
