"""How a process that works when it is told to talks to the one that tells it: lines of JSON, a question and its answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO


def answer_all(answers: Callable[[Iterator[Any]], Iterator[dict[str, Any]]]) -> None:
    """Be such a process: `answers` makes one answer for each question; what it dies of is the last one."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        for answer in answers(map(json.loads, sys.stdin)):
            print(json.dumps(answer), file=out, flush=True)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        print(json.dumps({"died": f"{type(error).__name__}: {first[:300]}"}), file=out, flush=True)
        raise


class Worker:
    """A process and what it answers; a dead one is asked nothing more.

    Attributes:
        name: of the work.
        died: of what, in a sentence; empty while it lives.
    """

    def __init__(self, name: str, command: list[str], log: TextIO, env: dict[str, str]) -> None:
        self.name, self.died = name, ""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **env}
        )

    def ask(self, question: Any, seconds: float) -> dict[str, Any]:
        """Its answer, or {} from a dead one; one that is silent for so many seconds is ended."""
        if self.died:
            return {}
        assert self._process.stdin is not None and self._process.stdout is not None
        watchdog = threading.Timer(max(1.0, seconds), self._process.kill)
        watchdog.start()
        start = time.perf_counter()
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
            answer: dict[str, Any] = json.loads(line) if line else {"died": self._end(time.perf_counter() - start, seconds)}
        except (OSError, ValueError) as error:
            answer = {"died": f"{type(error).__name__}: {error}"}
        finally:
            watchdog.cancel()
        self.died = answer.get("died", "")
        return {} if self.died else answer

    def _end(self, took: float, seconds: float) -> str:
        status = self._process.wait()
        return f"it was silent for {seconds:.0f} s" if took >= seconds else f"it ended with status {status}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def here(script: str) -> list[str]:
    """The command for a script beside this one."""
    return [sys.executable, str(Path(__file__).with_name(script))]
