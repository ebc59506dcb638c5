"""What an epoch does between its steps, counted: who decodes, when that begins, and what runs through the network."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spikerate.data import Data, load
from spikerate.data import image_files as files
from spikerate.data.decode import decode
from spikerate.data.settings import Augment
from spikerate.runs.config import Model, Run
from spikerate.runs.record import RunFolder
from spikerate.runs.state import State
from spikerate.runs.train import Trainer
from spikerate.system.codec import flat
from support.images import write_folder
from support.runs import Silent


def run_of(path: Path, **data: Any) -> Run:
    settings = Data("images", path, size=16, validation=4, augment=Augment(resized_crop=True), workers=2, **data)
    return Run(data=settings, model=Model(width=2), T=2, batch=4, epochs=3)


def trained(run: Run, out: Path) -> State:
    return Trainer(run, load(run.data, run.T), RunFolder.create(out, run, {}), Silent()).train()


def test_other_processes_decode_and_begin_an_epoch_during_the_evaluation_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"

    def note(what: str) -> None:
        with log.open("a") as lines:
            lines.write(what + "\n")

    def noted(file: Path, size: int, seed: int | None, margin: float) -> Any:
        note(f"decode {os.getpid()} {'train' if seed is not None else 'look'}")
        return decode(file, size, seed, margin)

    def begin(trainer: Trainer, *args: Any) -> Any:
        begun(trainer)
        note("evaluation")
        return validation(trainer, *args)

    def begun(trainer: Trainer) -> None:
        """Wait, with the steps of the epoch done, until the processes of the next one have decoded all its images."""
        epoch = log.read_text().count("evaluation")
        if epoch + 1 < trainer.run.epochs:
            for _ in range(2000):
                if log.read_text().count("train") >= 8 * (epoch + 2):
                    return
                pause.wait(0.01)
            raise AssertionError("nobody decodes")

    pause = threading.Event()
    validation = Trainer._validation
    monkeypatch.setattr(files, "decode", noted)
    monkeypatch.setattr(Trainer, "_validation", begin)
    trained(run_of(write_folder(tmp_path / "set")), tmp_path / "run")
    lines = log.read_text().splitlines()
    assert f"decode {os.getpid()}" not in "".join(lines)
    assert lines.count("evaluation") == 3
    looks = [line for line in lines if line.endswith("look")]
    assert len(looks) == 3 * 4, "the firing rates come from the images of the validation, which are decoded once"


def test_what_is_decoded_ahead_changes_no_bit(tmp_path: Path) -> None:
    run = run_of(write_folder(tmp_path / "set"))
    ahead = trained(run, tmp_path / "ahead")
    here = trained(replace(run, data=replace(run.data, workers=0)), tmp_path / "here")
    for a, b in zip(ahead.network.state_dict().values(), here.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    times = {"seconds", "train_seconds", "compile_seconds"}
    for one, other in zip(ahead.rows, here.rows, strict=True):
        assert {k: v for k, v in flat(one) if k not in times} == {k: v for k, v in flat(other) if k not in times}
