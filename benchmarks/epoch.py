"""An epoch of real training against its steps: where the rest of the time goes.

    python benchmarks/epoch.py train images-rate --data PATH --epochs 3 ...

takes the words of `spikerate`, runs the command in this process, and prints for each epoch the seconds of training steps,
of the forward passes of its evaluation, and of all that is between: waiting for batches, checkpoints, the rest. The last
column is the epoch over both kinds of steps. Nothing else may run on the machine.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from spikerate.cli.main import main
from spikerate.measure import evaluate
from spikerate.runs import train

COLUMNS = ("steps", "waiting for batches", "evaluation", "of it waiting", "firing rates", "checkpoint")


class Clock:
    """The seconds of each column since the last epoch."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def timed(self, f: Callable[..., Any], column: str) -> Callable[..., Any]:
        @wraps(f)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return f(*args, **kwargs)
            finally:
                self.spent[column] += time.perf_counter() - start

        return run

    def waited(self, batches: Callable[..., Iterator[Any]], column: str) -> Callable[..., Iterator[Any]]:
        @wraps(batches)
        def run(*args: Any, **kwargs: Any) -> Iterator[Any]:
            ready = batches(*args, **kwargs)  # begins now
            return iter(self.timed(lambda: next(ready, None), column), None)

        return run

    def epoch(self, trainer: train.Trainer, *args: Any, **kwargs: Any) -> bool:
        self.spent.clear()
        start = time.perf_counter()
        finite: bool = EPOCH(trainer, *args, **kwargs)
        whole, spent = time.perf_counter() - start, self.spent
        bare = spent["steps"] + spent["evaluation"] - spent["of it waiting"]
        figures = "   ".join(f"{name} {spent[name]:.3f}" for name in COLUMNS)
        print(f"epoch {whole:.3f} s: {figures}   epoch / steps {whole / bare:.4f}", file=sys.stderr, flush=True)
        return finite


EPOCH = train.Trainer._epoch

if __name__ == "__main__":
    clock = Clock()
    train.epoch_batches = clock.waited(train.epoch_batches, "waiting for batches")
    evaluate.plain_batches = clock.waited(evaluate.plain_batches, "of it waiting")
    for name, column in (
        ("_step", "steps"),
        ("_validation", "evaluation"),
        ("_probe", "firing rates"),
        ("_save", "checkpoint"),
    ):
        setattr(train.Trainer, name, clock.timed(getattr(train.Trainer, name), column))
    train.Trainer._epoch = lambda trainer, *args, **kwargs: clock.epoch(trainer, *args, **kwargs)
    sys.exit(main())
