"""A simulated event camera that records still images while they move in front of its sensor."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from spikerate.data.events import Events, Sensor

_REACH = 2.0
"""Largest distance from the centre during a saccade, in pixels along each axis."""
_CORNERS = np.array([(-1, -1), (1, 0), (-1, 1), (-1, -1)]) * _REACH
"""(y, x) of the triangle's corners."""
_SACCADE = 100_000
"""Microseconds from one corner to the next, at constant speed."""
_STEPS = 40
"""Renderings per saccade, a tenth of a pixel apart. Between two of them log intensity is taken as linear in time."""
_PATH = np.concatenate([*(np.linspace(a, b, _STEPS, endpoint=False) for a, b in itertools.pairwise(_CORNERS)), _CORNERS[:1]])
"""(y, x) of the image's centre at each rendering."""
_BLOCK = 64
"""Images recorded together; they fit into the processor's cache."""
_AMBIENT = 0.1
"""Intensity of a black pixel; that of a white pixel is larger by 1."""


def saccades(images: NDArray[np.floating], sensor: Sensor = (16, 16), threshold: float = 0.2) -> list[Events]:
    """Record images with an ideal event camera while they move along three saccades, 300 ms in all.

    The image is enlarged bilinearly on a black background, so that it stays inside the sensor while it moves along a
    triangle (as Orchard et al., Frontiers in Neuroscience 2015, moved the camera for N-MNIST). A pixel emits an event
    whenever its log intensity has changed by the threshold since its last event; the time is interpolated (ESIM: Rebecq,
    Gehrig and Scaramuzza, CoRL 2018). There is no noise: the same images give the same events. A black image gives none.

    Args:
        images: [N, h, w] in [0, 1].
        sensor: (H, W) in pixels.
        threshold: contrast, in units of the natural logarithm of intensity.

    Raises:
        ValueError: the images have another shape or range or are too large for the sensor, or the threshold is not positive.
    """
    if images.ndim != 3 or not (images.size and images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"the camera needs images [N, h, w] with values from 0 to 1, and got the shape {list(images.shape)}"
        )
    if not 0 < threshold < np.inf:
        raise ValueError(f"the contrast threshold is {threshold}: give a number above 0")
    shape = images.shape[1:]
    need = [side + 1 + int(2 * _REACH) for side in shape]
    if need[0] > sensor[0] or need[1] > sensor[1]:
        raise ValueError(f"images of {shape[0]} x {shape[1]} pixels need a sensor of at least {need[0]} x {need[1]}")
    blocks = (images[k : k + _BLOCK] for k in range(0, len(images), _BLOCK))
    return [events for block in blocks for events in _record(block, sensor, threshold)]


def _record(images: NDArray[np.floating], sensor: Sensor, threshold: float) -> list[Events]:
    """The events of some images. Log intensity counts from its start in units of the threshold: events are at integers."""
    padded = np.pad(np.moveaxis(images.astype(np.float64), 0, 2), ((1, 1), (1, 1), (0, 0)))
    start = _log_intensity(padded, _PATH[0], sensor)
    before, last = np.zeros_like(start), np.zeros_like(start)
    times, pixels, signs = [], [], []
    for k, place in enumerate(_PATH[1:]):
        after = (_log_intensity(padded, place, sensor) - start) / threshold
        crossed = np.trunc(after - last)
        pixel = np.flatnonzero(crossed)
        number = np.abs(crossed.flat[pixel]).astype(np.intp)
        nth = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + 1
        pixel = np.repeat(pixel, number)
        sign = np.sign(crossed.flat[pixel])
        share = (last.flat[pixel] + sign * nth - before.flat[pixel]) / (after.flat[pixel] - before.flat[pixel])
        times.append(((k + share.clip(0, 1)) * (_SACCADE / _STEPS)).astype(np.int64))
        pixels.append(pixel)
        signs.append(sign)
        last += crossed
        before = after
    t, pixel, sign = np.concatenate(times), np.concatenate(pixels), np.concatenate(signs)
    return _apart(t, pixel, sign, len(images), sensor[1])


def _log_intensity(padded: NDArray[np.float64], place: NDArray[np.float64], sensor: Sensor) -> NDArray[np.float64]:
    """[H, W, N]: log intensity at the sensor's pixels, for images whose centre is `place` (y, x) away from the sensor's."""
    rendered = padded
    for axis, size in enumerate(sensor):
        side = padded.shape[axis] - 2
        scale = (size - 2 * _REACH) / (side + 1)
        at = (np.arange(size) + 0.5 - size / 2 - place[axis]) / scale + side / 2 + 0.5
        at = at.clip(0, side + 1)
        low = np.minimum(at.astype(np.intp), side)
        part = np.expand_dims(at - low, [a for a in range(3) if a != axis])
        rendered = rendered.take(low, axis) * (1 - part) + rendered.take(low + 1, axis) * part
    return np.log(rendered + _AMBIENT)


def _apart(t: NDArray[np.int64], pixel: NDArray[np.intp], sign: NDArray[np.float64], n: int, width: int) -> list[Events]:
    """The events of each of n images, sorted by time."""
    pixel, image = np.divmod(pixel, n)
    order = np.argsort(image * (3 * _SACCADE + 1) + t, kind="stable")
    y, x = (v.astype(np.int16) for v in np.divmod(pixel[order], width))
    events = Events(t[order], x, y, (sign[order] > 0).astype(np.int8))
    edges = np.searchsorted(image[order], np.arange(n + 1))
    return [events[a:b] for a, b in itertools.pairwise(edges.tolist())]
