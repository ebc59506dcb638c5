"""Event recordings as the cameras write them, and small sets of them in their official layouts."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from spikerate.data.events import Events
from spikerate.data.recordings import (
    _CALTECH101,
    Recordings,
    cifar10_dvs,
    dvs128_gesture,
    event_folder,
    n_caltech101,
    n_mnist,
)

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def some_events(n: int = 50, side: int = 34, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, side, (2, n)).astype(np.int16)
    return Events(np.sort(rng.integers(1, 8_000_000, n)), x, y, rng.integers(0, 2, n).astype(np.int8))


def write_aedat2(e: Events) -> bytes:
    address = (127 - e.x.astype(np.int64)) << 8 | (127 - e.y.astype(np.int64)) << 1 | 1 - e.p.astype(np.int64)
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# Timestamps tick is 1 us\r\n"
    return header + np.stack([address, e.t], 1).astype(">u4").tobytes()


def write_bin(e: Events) -> bytes:
    last = e.p.astype(np.int64) << 23 | e.t
    return np.stack([e.x, e.y, last >> 16, last >> 8 & 255, last & 255], 1).astype(np.uint8).tobytes()


def packet(kind: int, body: bytes, size: int, overflow: int = 0) -> bytes:
    n = len(body) // size
    return struct.pack("<HHIIIIII", kind, 1, size, 4, overflow, n, n, n) + body


def polarity(e: Events, valid: int = 1) -> bytes:
    data = e.x.astype(np.int64) << 17 | e.y.astype(np.int64) << 2 | e.p.astype(np.int64) << 1 | valid
    return np.stack([data, e.t & 0x7FFFFFFF], 1).astype("<u4").tobytes()


AEDAT3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def write_aedat3(e: Events) -> bytes:
    half = len(e) // 2
    parts = [
        packet(1, polarity(e[:half]), 8),
        packet(2, b"frame" * 12, 60),
        packet(1, b"", 8),
        packet(1, polarity(e[half:]), 8),
    ]
    return AEDAT3 + b"".join(parts)


def write_npz(e: Events) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, t=e.t, x=e.x, y=e.y, p=e.p)
    return file.getvalue()


SENSOR = (34, 34)


def moved(e: Events, **change: Any) -> Events:
    return Events(**({"t": e.t, "x": e.x, "y": e.y, "p": e.p} | change))


def put(file: Path, raw: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(raw)


def write_cifar10_dvs(root: Path) -> Recordings:
    for k, name in enumerate(CIFAR10):
        files = {f"cifar10_{name}_{i}.aedat": write_aedat2(some_events(20, 128, 2 * k + i)) for i in range(2)}
        if k % 2:
            with zipfile.ZipFile(root / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for file, raw in files.items():
                    archive.writestr(f"{name}/{file}", raw)
                archive.writestr(f"__MACOSX/{name}/._cifar10_{name}_0.aedat", b"")
        else:
            for file, raw in files.items():
                put(root / name / file, raw)
            put(root / name / ".DS_Store", b"")
            put(root / name / "README.txt", b"")
    return cifar10_dvs(root)


def write_n_mnist(root: Path) -> Recordings:
    for k in range(10):
        for part, n in (("Train", 3), ("Test", 2)):
            for i in range(n):
                put(root / "N-MNIST" / part / str(k) / f"{i:05d}.bin", write_bin(some_events(20, 34, 9 * k + i)))
    return n_mnist(root)


def write_n_caltech101(root: Path) -> Recordings:
    """Two recordings of each class."""
    for k, name in enumerate(_CALTECH101):
        for i in range(2):
            put(root / "Caltech101" / name / f"image_{i + 1:04d}.bin", write_bin(some_events(20, 170, 2 * k + i)))
    return n_caltech101(root)


def write_gestures(root: Path) -> Recordings:
    e = some_events(2000, 128)
    e = moved(e, t=np.arange(2000) * 10)
    table = (
        "class,startTime_usec,endTime_usec\n" + "".join(f"{k},{1000 * k},{1000 * k + 1500}\n" for k in range(1, 12)) + "\n"
    )
    for part, users in (("train", ["user01_led", "user01_lab"]), ("test", ["user24_led"])):
        put(root / f"trials_to_{part}.txt", "".join(f"{u}.aedat\r\n" for u in users).encode())
        for user in users:
            put(root / f"{user}.aedat", write_aedat3(e))
            put(root / f"{user}_labels.csv", table.encode())
    return dvs128_gesture(root)


def write_folder(root: Path) -> Recordings:
    for part in ("train", "val"):
        for k, name in enumerate("abc"):
            put(root / part / name / "1.npz", write_npz(some_events(20, 34, k)))
    return event_folder(root, SENSOR)
