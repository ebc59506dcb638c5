"""Many processes do what one does, and when one is lost, all of them end and go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spikerate.system.dist import process_group
from support import ranks_worker
from support.agents import Server, alive, finished, state
from support.processes import wait_for
from support.runs import ARGUMENTS, assert_same

ENDED_WELL = "all ranks have ended well"
TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server("ranks_worker.py")
    yield started
    started.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("alone") / "1.pt"
    ranks_worker.main(str(out))
    return dict(torch.load(out))


@pytest.mark.parametrize("ranks", [2, 4])
def test_many_ranks_are_one_process(alone: dict[str, torch.Tensor], server: Server, tmp_path: Path, ranks: int) -> None:
    """With synchronised statistics: weights and buffers after a step, terms and metrics, for every rule, even and uneven."""
    pid = server.start(ranks, 0, str(tmp_path), ["found.pt"], log=tmp_path / "log")
    assert ENDED_WELL in finished(pid, tmp_path / "log", 300)
    found = dict(torch.load(tmp_path / "found.pt"))
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


def workers(agent: int) -> list[int]:
    """The processes that an agent has started, by rank."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return sorted(pid for pid in pids if state(pid)[1:2] == [str(agent)])


def test_a_killed_rank_is_restarted_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "--save-minutes", "0", "--out"]
    plain = server.start(2, 0, str(tmp_path), [*arguments, "unbroken"], log=tmp_path / "log")
    assert ENDED_WELL in finished(plain, tmp_path / "log", 200)
    broken = server.start(2, 3, str(tmp_path), [*arguments, "killed"], log=tmp_path / "log")
    last = tmp_path / "killed" / "last.safetensors"
    wait_for(last)
    wait_for(last, last.stat().st_mtime)
    os.kill(workers(broken)[1], signal.SIGKILL)
    said = finished(broken, tmp_path / "log", 200)
    assert ENDED_WELL in said and "another rank is gone or silent" in said
    assert_same(tmp_path / "unbroken", tmp_path / "killed")


def test_a_lost_rank_ends_all_within_a_minute_with_the_reason(server: Server, tmp_path: Path) -> None:
    arguments = [*ARGUMENTS, "--epochs", "2000", "--batch", "32", "--save-minutes", "10", "--out", "run"]
    agent = server.start(2, 0, str(tmp_path), arguments, log=tmp_path / "log")
    wait_for(tmp_path / "run" / "last.safetensors")
    time.sleep(1)
    first, second = workers(agent)
    os.kill(second, signal.SIGSTOP)  # it does not end, and does not answer
    said = finished(agent, tmp_path / "log", 150)
    assert ENDED_WELL not in said
    assert re.search(r"spikerate: rank 0 of 2 stops, since another rank is gone or silent: .*[Tt]imed? ?out", said), said
    assert not alive(first)


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
