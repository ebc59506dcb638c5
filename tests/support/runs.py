"""Runs of the command line that are stopped and go on, and what of them has to be the same."""

from __future__ import annotations

import functools
import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from spikerate.data import DataSet
from spikerate.losses import Terms
from spikerate.runs.config import Run
from spikerate.runs.record import RunFolder
from spikerate.runs.state import State
from spikerate.runs.train import Trainer
from spikerate.system.files import read_tensors
from spikerate.system.interrupt import Interrupt, Interrupted
from support.processes import Processes

ARGUMENTS = ["train", "digits-esd", "--width", "2", "--T", "2", "--batch", "100", "--epochs", "3"]


class Silent:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []
        self.rows: list[dict[str, Any]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def step(self, step: int, terms: Terms) -> None:
        self.steps.append(step)

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def stopped_at_every_step(
    run: Run, data: DataSet, folder: RunFolder, look: Callable[[], None] = lambda: None
) -> tuple[State, int]:
    """The state of a run that is asked to stop after each step, and goes on from there; how often, and a look each time."""
    stops = 0
    while True:
        stop = Interrupt()
        stop.signal = signal.SIGTERM
        try:
            return Trainer(run, data, folder, Silent(), stop=stop).train(), stops
        except Interrupted:
            stops += 1
            look()


def contents(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
    """What must not depend on how often a run was stopped: state, rows, result."""
    tensors, facts = read_tensors(folder / "last.safetensors")
    best, _ = read_tensors(folder / "best.safetensors")
    tensors |= {f"best.{name}": value for name, value in best.items()}
    rows = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in facts["rows"]]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in lines] == rows
    return tensors, rows, RunFolder(folder).result()


def assert_same(a: Path, b: Path) -> None:
    (tensors, rows, result), (others, other_rows, other_result) = contents(a), contents(b)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert rows == other_rows
    assert result == other_result


def until_finished(
    processes: Processes, run: Path, kill: signal.Signals, times: int, arguments: Sequence[str] = ARGUMENTS
) -> list[int]:
    """Start a run, stop it `times` times at random moments, resume it each time, and let it end; the exit statuses."""
    draw, statuses = random.Random(0), []
    for k in range(times + 1):
        begin = [*arguments, "--out", str(run), "--save-minutes", "0"]
        resume = ["train", "--resume", str(run), "--save-minutes", "0"]
        command = resume if (run / "run.json").exists() else begin
        moment = functools.partial(time.sleep, draw.uniform(0, 0.6))
        done = processes.run(*command, cwd=run.parent, kill=kill if k < times else None, when=moment)
        statuses.append(done.returncode)
        if (run / "last.safetensors").exists():
            read_tensors(run / "last.safetensors")
    return statuses
