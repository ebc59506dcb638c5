"""Work on files in parallel processes, with results in order."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from spikerate.system.interrupt import leave_to_parent

_ENDED = "a process that reads files was ended, perhaps for lack of memory"
Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(work: Callable[[Item], Result], items: Iterable[Item], workers: int | None) -> Iterator[Any]:
    """Yields `work(item)` for each item in order, computed a few items ahead by `workers` processes (None: one per core).

    The processes begin at once, before the first result is asked for. Arrays are returned as tensors.

    Raises:
        ValueError: `work` has raised it, or a process was killed.
    """
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    n = here if workers is None else workers
    loader = DataLoader(
        _Work(work),
        sampler=items,
        batch_size=None,
        num_workers=n,
        worker_init_fn=_begin,
        prefetch_factor=4 if n else None,
    )
    return _in_order(iter(loader))


def _in_order(results: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ValueError(f"{_ENDED}: give fewer --data.workers, or 0") from error
        if isinstance(result, _Failed):
            raise ValueError(result.reason)
        yield result


@dataclass(frozen=True)
class _Failed:
    reason: str


@dataclass(frozen=True)
class _Work(Dataset[Any], Generic[Item, Result]):
    work: Callable[[Item], Result]

    def __getitem__(self, item: Any) -> Result | _Failed:
        try:
            return self.work(item)
        except ValueError as error:  # returned as a value, since DataLoader would wrap the exception in a traceback
            return _Failed(str(error))
        except MemoryError:
            return _Failed(f"{_ENDED}: give fewer --data.workers, or 0")


def _begin(worker: int) -> None:
    """When asked to stop, the parent process finishes its step, and needs its workers for that."""
    leave_to_parent()
