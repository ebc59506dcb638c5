"""Independent streams of random numbers, one for each key, so that no draw depends on earlier ones."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the random numbers of a run are for. The numbers are part of its bits: another one would be another run."""

    AUGMENT = 0
    """the augmentation of a block of samples"""
    LAYERS = 1
    """layers that draw, as dropout, in one step"""
    CROP = 2
    """the crops that are decoded from image files"""
    SEARCH = 3
    """the directions in which a search for a temperature moves weights"""
    FLIP = 4
    """which samples are flipped in even epochs, by alternating flip"""
    SHIFT = 5
    """by how much each sample is shifted in an epoch"""
    MIX = 6
    """which samples of a batch are mixed, and how"""


def stream(*key: int) -> int:
    """The seed of the stream of that key: the seed of a run, a `Stream`, and of what: epoch, step, ..."""
    return int(np.random.default_rng(np.random.SeedSequence(key[0], spawn_key=key[1:])).integers(2**63))
