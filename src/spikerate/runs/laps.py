"""Where the time of an epoch goes: training, compilation, and what comes after the training."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from spikerate.runs.state import Row


@dataclass
class Laps:
    """The clock of an epoch.

    What the first step with a T and a shape takes longer than the next one counts as compilation, for that is most of it.

    Attributes:
        spent: seconds by name of the part of the epoch before a stop.
        start: when this part began.
        first: what the first step took whose next one is to come.
    """

    spent: Row
    start: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    compiled: float = 0.0

    def step(self, took: float, new: bool) -> None:
        """Called after each step; `new` if it is the first of its kind."""
        self.compiled += max(0.0, self.first - took) if self.first and not new else self.first
        self.first = took if new else 0.0

    def so_far(self, training: float | None = None) -> Row:
        """Seconds by name; all of them until now are of training, or else the first `training` ones."""
        now = time.perf_counter() - self.start
        compiled = self.compiled + self.first
        trained = max(0.0, (now if training is None else training) - compiled)
        own = {"seconds": now, "train_seconds": trained, "compile_seconds": compiled}
        return {name: round(self.spent.get(name, 0.0) + value, 3) for name, value in own.items()}
