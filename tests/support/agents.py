"""torchrun's agents in processes forked from one that has imported everything: seconds less for each of their ranks."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from support import ROOT


def serve(launch: Callable[..., None]) -> None:
    """Fork for each line of standard input, JSON of what `launch` takes and of a log's path; write who was forked."""
    import kornia.augmentation.auto  # noqa: F401

    for line in sys.stdin:
        *task, log = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            faulthandler.register(signal.SIGUSR2, file=2)  # its ranks inherit it
            status = 0
            try:
                launch(*task)
            except ChildFailedError:
                status = 1
            except BaseException:
                traceback.print_exc()
                status = 3
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)


class Server:
    """One of the files of this folder that serve."""

    def __init__(self, file: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", ROOT / "tests" / "support" / file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *task: Any, log: Path) -> int:
        """The process id of the agent, the first of a session."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([*task, str(log)]), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def state(pid: int) -> list[str]:
    """What the system tells of a process, from its state on; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pid: int) -> bool:
    return state(pid)[:1] not in ([], ["Z"])


def _hung(agent: int, log: Path) -> str:
    """What an agent and its ranks have said, and where their threads are, since they should have ended."""
    there = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    for pid in there:
        if state(pid)[3:4] == [str(agent)]:
            os.kill(pid, signal.SIGUSR2)
    time.sleep(2)
    states = {pid: state(pid)[0] for pid in there if state(pid)[3:4] == [str(agent)]}
    return f"{log.read_text()}\nstill there: {states}"


def finished(pid: int, log: Path, seconds: float) -> str:
    """What an agent and its ranks have said, once it has ended."""
    end = time.monotonic() + seconds
    while alive(pid):
        assert time.monotonic() < end, _hung(pid, log)
        time.sleep(0.05)
    return log.read_text()
