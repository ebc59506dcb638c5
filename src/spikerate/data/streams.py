"""Independent streams of random numbers, one for each key, so that no draw depends on earlier ones."""

from __future__ import annotations

import numpy as np


def stream(*key: int) -> int:
    """The seed of the random stream with that key."""
    return int(np.random.default_rng(np.random.SeedSequence(key[0], spawn_key=key[1:])).integers(2**63))
