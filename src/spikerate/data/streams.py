"""Streams of random numbers, each of its own key, so that nothing depends on what was drawn before."""

from __future__ import annotations

import numpy as np


def stream(*key: int) -> int:
    """The seed of the stream of that key."""
    return int(np.random.default_rng(np.random.SeedSequence(key[0], spawn_key=key[1:])).integers(2**63))
