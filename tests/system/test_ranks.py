"""Many processes do what one does, and when one is lost, all of them end and go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spikerate.system.dist import process_group
from support import ROOT, ranks_worker
from support.processes import wait_for
from support.runs import ARGUMENTS, assert_same

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]


def results(folder: Path, ranks: int) -> dict[str, torch.Tensor]:
    out = folder / f"{ranks}.pt"
    command = [*TORCHRUN, f"--nproc-per-node={ranks}", ROOT / "tests" / "support" / "ranks_worker.py", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(torch.load(out))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("alone") / "1.pt"
    ranks_worker.main(str(out))
    return dict(torch.load(out))


@pytest.mark.parametrize("ranks", [2, 4])
def test_many_ranks_are_one_process(alone: dict[str, torch.Tensor], tmp_path: Path, ranks: int) -> None:
    """With synchronised statistics: weights and buffers after a step, terms and metrics, for every rule, even and uneven."""
    found = results(tmp_path, ranks)
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    assert alone["validation 16"][1] == 180
    for optim in ("AdamW", "Muon"):
        assert found[f"ranks agree: {optim}"].all()


def train(out: Path, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "--nproc-per-node=2", f"--max-restarts={restarts}", "-m", "spikerate", *ARGUMENTS]
    return subprocess.Popen(
        [*command, "--out", str(out), "--save-minutes", "0", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=out.parent,
    )


def workers(parent: int) -> list[int]:
    """The processes that a torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            variables = dict(v.partition("=")[::2] for v in (folder / "environ").read_text().split("\0"))
        except (OSError, ValueError):
            continue
        if "RANK" in variables:
            found[int(variables["RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def test_a_killed_rank_is_restarted_and_changes_nothing(tmp_path: Path) -> None:
    plain = train(tmp_path / "unbroken")
    assert plain.wait(200) == 0, plain.stdout and plain.stdout.read()
    broken = train(tmp_path / "killed", restarts=3)
    wait_for(tmp_path / "killed" / "last.safetensors")
    wait_for(tmp_path / "killed" / "last.safetensors", (tmp_path / "killed" / "last.safetensors").stat().st_mtime)
    os.kill(workers(broken.pid)[1], signal.SIGKILL)
    said, _ = broken.communicate(timeout=200)
    assert broken.returncode == 0, said
    assert "another rank is gone or silent" in said
    assert_same(tmp_path / "unbroken", tmp_path / "killed")


def test_a_lost_rank_ends_all_within_a_minute_with_the_reason(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "--epochs", "2000", "--batch", "32", "--save-minutes", "10")
    wait_for(tmp_path / "run" / "last.safetensors")
    time.sleep(1)
    first, second = workers(run.pid)
    os.kill(second, signal.SIGSTOP)  # it does not end, and does not answer
    said, _ = run.communicate(timeout=150)
    assert run.returncode != 0
    assert re.search(r"spikerate: rank 0 of 2 stops, since another rank is gone or silent: .*[Tt]imed? ?out", said), said
    assert not Path(f"/proc/{first}").exists()


def test_one_signal_stops_all_ranks_at_one_step(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "--epochs", "2000")
    wait_for(tmp_path / "run" / "last.safetensors")
    time.sleep(1)
    os.kill(workers(run.pid)[1], signal.SIGTERM)
    said, _ = run.communicate(timeout=60)
    assert "and saved; continue by: spikerate train --resume" in said, said


def test_more_ranks_than_gpus_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match=r"which has 1 GPU: give --nproc-per-node 1, or --device cpu"),
        process_group(True, False),
    ):
        pass


def test_too_many_ranks_for_a_batch(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "--batch", "3")
    said, _ = run.communicate(timeout=60)
    assert "spikerate: batch is 3 with accumulate=1 on 2 ranks: batch norm needs at least two images" in said
    assert not (tmp_path / "run").exists()
