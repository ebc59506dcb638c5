"""Checks of the ranges of settings; each raises `ValueError` with one sentence."""

from __future__ import annotations

import numbers

LARGEST = 1e12
"""Largest factor, rate or potential: far beyond every use, while products of it stay finite in float32."""
SMALLEST = 1e-30
"""Smallest number that counts as positive, for the same reason."""

MOST_STEPS = 10_000
"""Time steps of a network, ten seconds at 1 ms each. A larger number in somebody else's file would only fill memory."""
MOST_EPOCHS = 1_000_000
MOST_SAMPLES = 1_000_000
"""Samples of a batch."""


def check_plain(name: str, value: object) -> None:
    """Raise `ValueError` unless value is a plain number. A tensor or a parameter would get no gradient under most rules."""
    if not isinstance(value, numbers.Real):
        raise ValueError(
            f"{name} is a {type(value).__name__}: give a plain number, as float(value), which is not learned and the "
            "same for a whole layer; a neuron whose values are tensors or learned is ParametricLIF"
        )


def check_number(name: str, value: float, low: float = -LARGEST, high: float = LARGEST) -> None:
    """Raise `ValueError` unless low <= value <= high; NaN is in no range."""
    check_plain(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}: give a number from {low:g} to {high:g}")


def check_positive(name: str, value: float, high: float = LARGEST) -> None:
    """Raise `ValueError` unless value is positive, at most `high`, and large enough not to be 0 in float32."""
    check_plain(name, value)
    if not SMALLEST <= value <= high:
        raise ValueError(f"{name} is {value}: give a positive number, {SMALLEST:g} to {high:g}")


def check_share(name: str, value: float) -> None:
    """Raise `ValueError` unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}: give a number in [0, 1)")


def check_count(name: str, value: int, what: str, most: int, least: int = 1) -> None:
    """Raise `ValueError` unless value is a whole number, least <= value <= most."""
    if not (least <= value <= most and value == int(value)):
        raise ValueError(f"{name} is {value}: give {what} >= {least}, and {most:,} at most")


def check_seed(value: int) -> None:
    """Raise `ValueError` unless value is a seed for PyTorch's generators that fits into run.json."""
    if not 0 <= value < 2**63:
        raise ValueError(f"seed is {value}: give a whole number from 0 to 2^63 - 1")
