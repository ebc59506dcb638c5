"""Progress of long work: how a loop tells somebody who waits how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
Track = Callable[[Iterator[Any], str, int], Iterator[Any]]
"""Hands items on, and shows how many of so many are done: (items, what is being done, how many there are)."""


def untracked(items: Iterator[Item], what: str, total: int) -> Iterator[Item]:
    """Show nothing."""
    return items
