"""The command line in processes of its own, forked from one that has imported everything: seconds less for each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_SERVER = """
import json, os, signal, sys
from spikerate.cli.main import main
import kornia.augmentation.auto, spikerate.cli.plots
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests
for line in sys.stdin:
    arguments, cwd, out, err = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(cwd)
        os.dup2(os.open(out, os.O_WRONLY), 1), os.dup2(os.open(err, os.O_WRONLY), 2)
        status = main(arguments)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def wait_for(file: Path, changed_since: float = 0) -> None:
    """Return when the file has been written."""
    end = time.monotonic() + 120
    while not (file.exists() and file.stat().st_mtime > changed_since):
        assert time.monotonic() < end, f"{file} was never written"
        time.sleep(0.05)


class Processes:
    """Runs `spikerate` as a user does, one process at a time; none can disturb another."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, *arguments: str, cwd: Path, kill: signal.Signals | None = None, when: Callable[[], None] = lambda: None
    ) -> subprocess.CompletedProcess[str]:
        """`spikerate ARGUMENTS` in the folder `cwd`, sent a signal once `when` returns."""
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
            pid = self.start(*arguments, cwd=cwd, out=out.name, err=err.name)
            if kill is not None:
                when()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, kill)
            return subprocess.CompletedProcess(arguments, self.wait(), out.read(), err.read())

    def start(self, *arguments: str, cwd: Path, out: str, err: str) -> int:
        """Start `spikerate ARGUMENTS` with its output to the files or terminals of these names; returns its process id."""
        assert self.server.stdin is not None and self.server.stdout is not None
        print(json.dumps([arguments, str(cwd), out, err]), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        """The exit status of the process that was started."""
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())

    def close(self) -> None:
        self.server.communicate()
