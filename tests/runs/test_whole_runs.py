"""Whole runs from Python: trained, stopped, resumed, reproduced, for several seeds; and how often a record is read."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spikerate.cli.main import main
from spikerate.data import Data
from spikerate.losses import Terms
from spikerate.rules import BPTT
from spikerate.runs import record, rounds
from spikerate.runs.audience import Nobody, Onlooker
from spikerate.runs.config import Model, Round, Run
from spikerate.runs.record import RunFolder
from spikerate.runs.state import Row
from spikerate.system.interrupt import Interrupted
from support.runs import assert_same

TINY = Run(Data("digits", subset=24), Model("vgg11", 1), rule=BPTT(), T=1, epochs=2, batch=8)
TWICE = replace(TINY, before=(Round(None, 1, 0.1),))


@dataclass(frozen=True)
class Listening(Nobody):
    """Notes what it is told, and has the process asked to stop after so many steps of all rounds."""

    told: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    stop_after: int | None = None

    def title(self, line: str) -> None:
        self.told.append(line)

    def begun(self, folder: RunFolder) -> None:
        self.told.append(f"begun {folder.path.name}")

    @contextmanager
    def training(self, run: Run, folder: RunFolder, steps: int, title: str, rows: Sequence[Row]) -> Iterator[Onlooker]:
        self.told.append(f"training {folder.path.name} after {len(rows)} epochs of {steps} steps")
        yield self

    def step(self, step: int, terms: Terms) -> None:
        self.steps.append(step)
        if len(self.steps) == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    def trained(self, run: Run, folder: RunFolder, state: Any, measured: Any, last: bool) -> None:
        self.told.append(f"trained {folder.path.name}{', the last' if last else ''}")

    def finished(self, rounds: Sequence[tuple[Run, RunFolder]]) -> None:
        self.told.append(f"finished {len(rounds)} rounds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two rounds, of which nobody was told."""
    return rounds.train(TWICE, tmp_path_factory.mktemp("whole") / "run")


def test_a_run_is_stopped_resumed_and_told_of(whole: RunFolder, tmp_path: Path) -> None:
    first, second = Listening(stop_after=3), Listening()
    with pytest.raises(Interrupted):
        rounds.train(TWICE, tmp_path / "run", {"preset": "mine"}, audience=first)
    assert not RunFolder.open(tmp_path / "run").result()
    rounds.resume(RunFolder.open(tmp_path / "run"), audience=second)
    assert len(first.steps) + len(second.steps) == 3 * (1 + 2), "no step is done twice, and none is left out"
    for name in ("round1-ann", "."):
        assert_same(whole.path / name, tmp_path / "run" / name)
    begun, title, of_round, training, *_ = first.told
    assert (begun, of_round) == ("begun run", "round 1 of 2: ANN, 1 epoch") and title == "mine"
    assert training == "training round1-ann after 0 epochs of 3 steps"
    assert second.told[-2:] == ["trained run, the last", "finished 2 rounds"]
    assert rounds.whole(RunFolder.open(tmp_path / "run" / "round1-ann")).path == tmp_path / "run"


def test_a_run_is_reproduced(whole: RunFolder, tmp_path: Path) -> None:
    repetitions = rounds.reproduce(whole, tmp_path / "again")
    assert [(r.original.path.name, r.agrees, dict(r.differing)) for r in repetitions] == [
        ("round1-ann", True, {}),
        ("run", True, {}),
    ]
    with pytest.raises(ValueError, match="is one round of a run"):
        rounds.reproduce(RunFolder.open(whole.path / "round1-ann"), tmp_path / "third")
    with pytest.raises(ValueError, match="already contains another run"):
        rounds.train(TWICE, tmp_path / "again")


def test_seeds_are_trained_once(tmp_path: Path) -> None:
    first, second = Listening(), Listening()
    folders = rounds.train_seeds(TINY, [3, 5], tmp_path, audience=first)
    assert {seed: (f.path, f.config().seed) for seed, f in folders.items()} == {
        seed: (tmp_path / f"seed{seed}", seed) for seed in (3, 5)
    }
    assert all(folder.result() for folder in folders.values())
    assert rounds.train_seeds(TINY, [3, 5], tmp_path, audience=second) == folders
    assert (len(first.steps) > 0, second.steps, second.told) == (True, [], [])
    with pytest.raises(ValueError, match="seed3 contains a run with other settings"):
        rounds.train_seeds(replace(TINY, epochs=3), [3], tmp_path)


@pytest.mark.parametrize("command", ["eval", "predict", "export", "report", "gradient"])
def test_a_command_reads_the_record_of_a_run_once(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    words = {
        "eval": [],
        "predict": [str(tmp_path / "picture.png")],
        "export": [str(tmp_path / "network.safetensors")],
        "report": ["--out", str(tmp_path / "report.html")],
        "gradient": ["--out", str(tmp_path / "gradient"), "--samples", "4", "--directions", "2"],
    }
    read: list[Path] = []
    real = record.read_text
    monkeypatch.setattr(record, "read_text", lambda file: read.append(file) or real(file))
    assert main([command, str(whole.path), *words[command]]) == 0
    assert read.count(whole.run_file) == 1
