"""The command line called within the test's own process."""

from __future__ import annotations

import contextlib
import io
import signal
from typing import Any

from spikerate.cli.main import main

TINY = ["digits-esd", "--width", "2", "--T", "1", "--subset", "40", "--batch", "20", "--epochs", "1"]


def tell(*arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of a command, which must not wait for anything."""

    def give_up(number: int, frame: Any) -> None:
        raise AssertionError(f"{arguments} hangs")

    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(arguments))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return status, out.getvalue(), err.getvalue()


def refused(*arguments: str) -> str:
    """The one sentence of a command that is refused."""
    status, _, err = tell(*arguments)
    assert status == 2 and err.count("\n") == 1 and err.startswith("spikerate: "), (arguments, status, err)
    return err
