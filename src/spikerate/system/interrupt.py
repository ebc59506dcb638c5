"""Operating-system signals that ask to stop: training finishes its step and saves; other commands clean up and end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_END = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGUSR1)
"""In this order: sent by kill, SLURM and torchrun; sent when a terminal closes; Control-\\; the processor-time limit is
reached; sent by SLURM ahead of the end, with `--signal=USR1@60`. Control-C is SIGINT."""
Handler = Callable[[int, FrameType | None], Any]


class Interrupt:
    """A context manager that remembers the first signal that asks to stop. A second Control-C stops at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has been received."""
        return self.signal is not None

    def __enter__(self) -> Interrupt:
        self._previous = _handle_by(self._note, signal.SIGINT, *_END)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _restore(self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)


class Interrupted(Exception):
    """A run has stopped because a signal asked for it, and can be resumed from its folder.

    Attributes:
        status: exit status, 130 after SIGINT and 143 after the other signals, as shells have it.
    """

    def __init__(self, received: signal.Signals | None) -> None:
        super().__init__(received.name if received else "another rank was")
        self.status = 130 if received == signal.SIGINT else 143


class Ended(BaseException):
    """A signal has asked a command to end. Not an `Exception`, like `KeyboardInterrupt`: error handlers don't catch it."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """While the block runs, a signal that asks to end raises `Ended`, and Control-C raises `KeyboardInterrupt`.

    As exceptions they let the block remove half-written files and end its child processes.
    """
    previous = _handle_by(_end, *_END) | _handle_by(signal.default_int_handler, signal.SIGINT)
    try:
        yield
    finally:
        _restore(previous)


def leave_to_parent() -> None:
    """Called in a child process: leave to the parent the signals that a terminal or batch system sends to all processes.

    SIGTERM still ends the child, since the parent ends its children by it.
    """
    for number in (signal.SIGINT, *_END):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(signal.Signals(number))


def _handle_by(handler: Handler, *numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Set a handler, and return the previous ones. SIGHUP stays ignored if it is, since nohup wants it so."""
    ours = [n for n in numbers if not (n == signal.SIGHUP and signal.getsignal(n) == signal.SIG_IGN)]
    return {number: signal.signal(number, handler) for number in ours}


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
