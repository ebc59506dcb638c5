"""Signals that ask to stop: a run in training finishes its step and saves, everything else cleans up, and goes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGUSR1)
"""What kill, SLURM and torchrun send; a terminal that is closed; Control-\\; the end of the processor time that a limit
allows; what SLURM sends ahead of the end where `--signal=USR1@60` asks for it. Control-C is SIGINT."""
Handler = Callable[[int, FrameType | None], Any]


class Interrupt:
    """While the block runs, remembers the first signal that asks to stop; a second Control-C stops at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def __enter__(self) -> Interrupt:
        self._before = _handle_by(self._note, signal.SIGINT, *_END)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)


class Interrupted(Exception):
    """A run has stopped as it was asked to, and can go on from its folder.

    Attributes:
        status: 130 after SIGINT, 143 after the other signals, as shells have it.
    """

    def __init__(self, received: signal.Signals | None) -> None:
        super().__init__(received.name if received else "another rank was")
        self.status = 130 if received == signal.SIGINT else 143


class Ended(BaseException):
    """A signal has asked a command to end; no error, like `KeyboardInterrupt`, so that whoever handles errors lets it by."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While the block runs, a signal that asks to end raises `Ended`, and Control-C `KeyboardInterrupt`.

    So half-written files are removed and child processes ended on the way out.
    """
    before = _handle_by(_end, *_END) | _handle_by(signal.default_int_handler, signal.SIGINT)
    try:
        yield
    finally:
        _restore(before)


def leave_to_parent() -> None:
    """In a child process: the signals that a terminal or a batch system sends to all processes at once are the parent's.

    SIGTERM ends a child, since its parent ends it so.
    """
    for number in (signal.SIGINT, *_END):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(signal.Signals(number))


def _handle_by(handler: Handler, *numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Set a handler; returns those before. SIGHUP stays ignored where it is: so nohup asks for it."""
    ours = [n for n in numbers if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]
    return {number: signal.signal(number, handler) for number in ours}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
