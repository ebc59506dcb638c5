"""Progress of long work: the interface by which a loop reports how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
Track = Callable[[Iterator[Any], str, int], Iterator[Any]]
"""(items, what is being done, number of items) -> the same items, with a progress bar for instance."""


def untracked(items: Iterator[Item], what: str, total: int) -> Iterator[Item]:
    """A `Track` that shows nothing."""
    return items
