"""Signals that ask a run to stop: it finishes its step, saves, and goes."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Control-C; what kill, SLURM and torchrun send; what SLURM sends ahead of the end where `--signal=USR1@60` asks for it."""


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
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)


class Interrupted(Exception):
    """A run has stopped as it was asked to, and can go on from its folder.

    Attributes:
        status: 130 after SIGINT, 143 after SIGTERM and SIGUSR1, as shells have it.
    """

    def __init__(self, received: signal.Signals | None) -> None:
        super().__init__(received.name if received else "another rank was")
        self.status = 130 if received == signal.SIGINT else 143
