"""Frames from events: the number of events at each pixel in each slice of a recording."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spikerate.data.events import Events, Sensor

_MOST = int(np.iinfo(np.int16).max)


def frames(events: Events, T: int, sensor: Sensor, by: Literal["number", "time"]) -> NDArray[np.int16]:
    """Count the events of each polarity and pixel in T slices of a recording.

    Args:
        events: the recording.
        T: number of slices, which are the time steps.
        sensor: (H, W), with all events inside.
        by: "number": N // T events in each slice, and the remainder in the last one too (Fang et al., ICCV 2021);
            "time": T slices of equal duration from the first event to the last, which belongs to the last slice.

    Returns:
        [T, 2, H, W], channel 0 for p = 0.

    Raises:
        ValueError: fewer events than T, T below 1, events outside the sensor, or a count beyond int16.
    """
    n = len(events)
    if not 1 <= T <= n:
        raise ValueError(f"{n} events can't be cut into {T} slices: give a T from 1 to the number of events")
    h, w = sensor
    if min(events.x.min(), events.y.min()) < 0 or events.x.max() >= w or events.y.max() >= h:
        raise ValueError(f"there are events outside a sensor of {h} x {w} pixels: give the size of the sensor that saw them")
    cell = (events.p.astype(np.intp) * h + events.y) * w + events.x
    edges = by_number(n, T) if by == "number" else _by_time(events.t, T)
    counts = np.stack([np.bincount(cell[a:b], minlength=2 * h * w) for a, b in itertools.pairwise(edges)])
    if counts.max() > _MOST:
        raise ValueError(f"a pixel has {counts.max():,} events in one of {T} slices, more than {_MOST:,}: give a larger T")
    return counts.astype(np.int16).reshape(T, 2, h, w)


def by_number(n: int, T: int) -> list[int]:
    """Where T slices of n events begin, N // T in each and the remainder in the last one too, and where that ends."""
    return [*range(0, n // T * T, n // T), n]


def _by_time(t: NDArray[np.int64], T: int) -> list[int]:
    first, span = int(t[0]), int(t[-1]) - int(t[0])
    inner = [first + -(-k * span // T) for k in range(1, T)]  # the first microsecond of span k, rounded up
    return [0, *np.searchsorted(t, inner).tolist(), len(t)]
