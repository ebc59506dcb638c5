"""Readers of event recordings in binary formats. Every event is checked; no file is trusted."""

from __future__ import annotations

import importlib
import io
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sensor = tuple[int, int]
"""(H, W) in pixels."""
Numbers = NDArray[np.integer[Any]]

DVS128: Sensor = (128, 128)
LARGEST = 2**29
"""Largest recording in unpacked bytes: 67 million events of a DVS128, far more than official recordings have."""
_UNPACKED, _RATIO = 2**24, 100
"""A member of an archive may unpack to the first in bytes, or to this multiple of its packed size; deflate reaches 1,030."""
_HEADER = 2**16
"""Largest text header in bytes; real ones have some hundred."""
_PACKET = struct.Struct("<HHIIIIII")
_POLARITY = 1
_OVERFLOW = 240
"""The value of y that marks an overflow of time in a file of N-MNIST or N-Caltech101; no pixel of theirs has it."""
_PACKET_TYPES = 14


class Broken(ValueError):
    """A recording is broken; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True, eq=False)
class Events:
    """The events of a recording, sorted by time.

    Attributes:
        t: [N] int64, microseconds.
        x, y: [N] int16, column and row.
        p: [N] int8, 1 where the pixel grew brighter and 0 where it grew darker.
    """

    t: NDArray[np.int64]
    x: NDArray[np.int16]
    y: NDArray[np.int16]
    p: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, part: slice) -> Events:
        return Events(self.t[part], self.x[part], self.y[part], self.p[part])


def read_file(file: Path, sensor: Sensor) -> Events:
    """Read a file that contains one recording; its suffix, in upper or lower case, names the format.

    Raises:
        Broken: the file can't be read, has an unknown suffix, or is broken; the message says where.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise Broken(f"{file} is no file of at most {LARGEST:,} bytes: cut it into shorter recordings")
        if file.suffix.lower() == ".aedat4":
            return aedat4(file, sensor)
        raw = file.read_bytes()
    except OSError as error:
        raise Broken(f"{file} can't be read: {error.strerror}") from error
    return parse(raw, str(file), sensor)


def parse(raw: bytes, where: str, sensor: Sensor) -> Events:
    """Read a recording from the bytes of a file that is named `where`.

    Raises:
        Broken: the suffix is unknown or the recording is broken.
    """
    suffix = Path(where).suffix.lower()
    if suffix not in _READERS:
        raise Broken(f"{where} is no recording: its name should end in {', '.join(_READERS)} or .aedat4")
    return _READERS[suffix](raw, where, sensor)


def aedat(raw: bytes, where: str, sensor: Sensor = DVS128) -> Events:
    """Read AER-DAT 2.0 or 3.1 by the version line of the header; a header without one means 2.0.

    Raises:
        Broken: the bytes are neither of them, or are broken.
    """
    first = raw[:64].split(b"\n")[0].rstrip()
    if not first.startswith(b"#"):
        raise Broken(f"{where} has no header at byte 0: a .aedat file begins with '#!AER-DAT2.0' or '#!AER-DAT3.1'")
    if first.startswith(b"#!AER-DAT3."):
        return aedat3(raw, where, sensor)
    if first.startswith(b"#!AER-DAT") and not first.startswith(b"#!AER-DAT2."):
        version = first.removeprefix(b"#!AER-DAT").decode("ascii", "backslashreplace")
        raise Broken(f"{where} is of AER-DAT version {version}: 2.0 and 3.1 are read, and 4.0 where it is named .aedat4")
    return aedat2(raw, where, sensor)


def aedat2(raw: bytes, where: str, sensor: Sensor = DVS128) -> Events:
    """Read AER-DAT 2.0 of a DVS128, as in CIFAR10-DVS: '#' lines, then big-endian pairs of uint32, address and microseconds.

    x = 127 - address[8..14], y = 127 - address[1..7], p = 1 - address[0]; special events (bit 15) are left out. If a time
    stamp is smaller than the one before by more than 2 ** 31, its 32 bits have overflowed, and 2 ** 32 is added from there.

    Raises:
        Broken: the file is truncated, empty or not AER-DAT 2.0, or has impossible events.
    """
    start = 0
    while raw[start : start + 1] == b"#":
        start = raw.find(b"\n", start, _HEADER) + 1
        if start == 0:
            raise Broken(f"{where} has a header without an end in its first {min(len(raw), _HEADER)} bytes: fetch it again")
    words = _records(raw, start, np.dtype((">u4", 2)), where)
    foreign = words[:, 0] > 0xFFFF
    if foreign.any():
        k = int(foreign.argmax())
        raise Broken(
            f"{where} has the address {int(words[k, 0]):#x} at byte {start + 8 * k}, which no DVS128 has: "
            "it is broken, little-endian or of another camera"
        )
    kept = np.flatnonzero(words[:, 0] < 0x8000)
    address, t = words[kept].astype(np.int64).T
    t = t + (np.cumsum(np.diff(t, prepend=t[:1]) < -(2**31)) << 32)
    x, y, p = 127 - (address >> 8), 127 - (address >> 1 & 0x7F), 1 - (address & 1)
    return _checked(t, x, y, p, sensor, where, lambda k: f"byte {start + 8 * int(kept[k])}")


def n_mnist(raw: bytes, where: str, sensor: Sensor = (34, 34)) -> Events:
    """Read a `.bin` of N-MNIST or N-Caltech101 (Orchard et al., 2015).

    Five bytes per event, which is 40 bits: x, y, then 1 bit of polarity and 23 of time in microseconds.

    An entry with y = 240 is not an event but marks an overflow of the clock: 2 ** 13 us are added to all later times.

    Raises:
        Broken: the file is truncated or empty, or has impossible events.
    """
    b = _records(raw, 0, np.dtype((np.uint8, 5)), where)
    marks = b[:, 1] == _OVERFLOW
    t = (b[:, 2] & 0x7F).astype(np.int64) << 16 | b[:, 3].astype(np.int64) << 8 | b[:, 4]
    kept = np.flatnonzero(~marks)
    t, b = (t + (np.cumsum(marks) << 13))[kept], b[kept]
    return _checked(t, b[:, 0], b[:, 1], b[:, 2] >> 7, sensor, where, lambda k: f"byte {5 * int(kept[k])}")


def aedat3(raw: bytes, where: str, sensor: Sensor = DVS128) -> Events:
    """Read AER-DAT 3.1, as in DVS128 Gesture: a text header, then packets of a 28-byte header and events.

    Polarity events are read unless they are marked invalid; packets of other types are skipped.

    Raises:
        Broken: the file or a packet is truncated, a packet or an event is impossible, or there is no event.
    """
    end = re.search(rb"^#!END-HEADER\r?\n", raw[:_HEADER], re.MULTILINE)
    if end is None:
        raise Broken(f"{where} has no line #!END-HEADER in its first {min(len(raw), _HEADER)} bytes: fetch it again")
    start, starts, sizes, overflows = end.end(), [], [], []
    while start < len(raw):
        kind, size, overflow, number = _packet(raw, start, where)
        start += _PACKET.size
        if kind == _POLARITY:
            starts.append(start)
            sizes.append(number)
            overflows.append(overflow)
        start += size * number
    first = np.cumsum([0, *sizes])
    words = np.empty((first[-1], 2), "<u4")
    for k, (at, n) in enumerate(zip(starts, sizes, strict=True)):
        words[first[k] : first[k + 1]] = np.frombuffer(raw, "<u4", 2 * n, at).reshape(n, 2)
    kept = np.flatnonzero(words[:, 0] & 1)

    def place(k: int) -> str:
        packet = int(np.searchsorted(first, kept[k], "right")) - 1
        return f"byte {starts[packet] + 8 * int(kept[k] - first[packet])}"

    data = words[kept, 0]
    t = (np.repeat(np.array(overflows, np.int64), sizes) << 31)[kept] + words[kept, 1].view("<i4")
    return _checked(t, data >> 17, data >> 2 & 0x7FFF, data >> 1 & 1, sensor, where, place)


def _packet(raw: bytes, start: int, where: str) -> tuple[int, int, int, int]:
    """Type, event size, time stamp overflow and number of events of the packet at byte `start`.

    Raises:
        Broken: the packet is impossible or does not end within the file.
    """
    if len(raw) - start < _PACKET.size:
        raise Broken(f"{where} is cut inside the packet header at byte {start}: fetch it again")
    kind, _, size, _, overflow, _, number, _ = _PACKET.unpack_from(raw, start)
    if kind >= _PACKET_TYPES or (kind == _POLARITY and size != 8):
        raise Broken(f"{where} has no packet at byte {start} (type {kind}, events of {size} bytes): fetch it again")
    if size * number > len(raw) - start - _PACKET.size:
        raise Broken(f"{where} is cut inside the packet at byte {start}, which has {number} events: fetch it again")
    return kind, size, overflow, number


def decoder() -> Any:
    """The class `Decoder` of the optional package aedat.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        return importlib.import_module("aedat").Decoder
    except ImportError as error:
        raise ValueError("the format .aedat4 is read by another package: pip install 'spikerate[aedat]'") from error


def aedat4(file: Path, sensor: Sensor) -> Events:
    """Read AEDAT 4, by the package aedat.

    Raises:
        ValueError: the package is not installed.
        Broken: the file is broken or empty, or has impossible events.
    """
    open_file = decoder()
    try:
        packets = [packet["events"] for packet in open_file(file) if "events" in packet]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the package is written in Rust, whose panics are not derived from Exception
        raise Broken(f"{file} can't be decoded ({type(error).__name__}): fetch it again") from error
    if not packets:
        raise Broken(f"{file} has no events: fetch it again")
    events = np.concatenate(packets)
    return _checked(events["t"], events["x"], events["y"], events["on"], sensor, str(file), lambda k: f"event {k}")


def npz(raw: bytes, where: str, sensor: Sensor) -> Events:
    """Read a NumPy archive with the arrays t (microseconds), x, y and p, one-dimensional, of integers and the same length.

    Polarities are 0 and 1, or booleans, or -1 and 1, where -1 is read as 0. Sizes are checked before anything is unpacked,
    and nothing is unpickled.

    Raises:
        Broken: the archive is broken, an array is missing, forged or not a list of integers, or an event is impossible.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = [_one_of_each(archive, name, len(raw), where) for name in "txyp"]
            total = sum(member.file_size for member in members)
            if total > LARGEST:
                raise Broken(f"{where} has arrays of {total:,} bytes, more than any recording: cut it into shorter ones")
            t, x, y, p = (_array(archive, member, where) for member in members)
    except Broken:
        raise
    except Exception as error:  # a broken archive can raise anything
        raise Broken(f"{where} is truncated or no NumPy archive ({type(error).__name__}): write it again") from error
    if not len(t) == len(x) == len(y) == len(p):
        raise Broken(
            f"{where} has arrays of {len(t)}, {len(x)}, {len(y)} and {len(p)} numbers: t, x, y, p are of one length"
        )
    if len(p) and p.dtype.kind == "i" and p.min() == -1:
        p = np.where(p == 0, np.int8(2), p > 0)  # beside -1, a polarity of 0 is impossible
    return _checked(t, x, y, p, sensor, where, lambda k: f"event {k}")


def _one_of_each(archive: zipfile.ZipFile, name: str, size: int, where: str) -> zipfile.ZipInfo:
    n = archive.namelist().count(f"{name}.npy")
    if n != 1:
        raise Broken(f"{where} has {n} arrays {name}: one each of t, x, y, p is needed")
    return checked_member(archive.getinfo(f"{name}.npy"), size, where)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Numbers:
    """An array of an archive; the shape in its header must agree with the size of the member."""
    name = member.filename[0]
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise Broken(f"{where} has an array {name} of a newer format than 1.0: write it with numpy.savez")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if len(shape) != 1 or dtype.kind not in "iub":
            raise Broken(f"{where} has an array {name} of shape {shape} and type {dtype}: give a list of integers")
        if shape[0] * dtype.itemsize != member.file_size - file.tell():
            raise Broken(f"{where} has an array {name} whose header gives another length than it has: write it again")
        return np.frombuffer(file.read(), dtype)


def checked_member(info: zipfile.ZipInfo, size: int, where: str) -> zipfile.ZipInfo:
    """Check that a member of an archive of `size` bytes can be unpacked and is not a zip bomb; returns the member.

    Raises:
        Broken: it is encrypted, compressed by another method than deflate, too large, or too large for its packed bytes.
    """
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Broken(f"{where} has the member {info.filename!r}, which is encrypted or not deflated: pack it again")
    if info.file_size > LARGEST:
        raise Broken(f"{where} has the member {info.filename!r} of {info.file_size:,} bytes, more than any recording")
    packed = min(info.compress_size, size)
    if info.file_size > max(_UNPACKED, _RATIO * packed):
        raise Broken(
            f"{where} has the member {info.filename!r}, which unpacks from {packed:,} to {info.file_size:,} bytes: "
            "no recording does, don't trust it"
        )
    return info


def _records(raw: bytes, start: int, record: np.dtype[Any], where: str) -> Numbers:
    """The records [N, ...] that the file consists of from byte `start` on."""
    n, rest = divmod(len(raw) - start, record.itemsize)
    if rest:
        raise Broken(f"{where} is cut inside the event at byte {len(raw) - rest}: fetch it again")
    return np.frombuffer(raw, record, n, start)


def _checked(
    t: Numbers, x: Numbers, y: Numbers, p: NDArray[Any], sensor: Sensor, where: str, place: Callable[[int], str]
) -> Events:
    """The events, after checking that the camera can have seen them; `place(k)` says where in the file the k-th is."""
    if not 1 <= len(t) <= LARGEST // 8:
        few = "no events" if len(t) == 0 else f"{len(t):,} events, more than any recording"
        raise Broken(f"{where} has {few}: leave it out or fetch it again")
    if t.max() > np.iinfo(np.int64).max:
        raise Broken(f"{where} has a time beyond 63 bits at {place(int(t.argmax()))}: times are microseconds")
    h, w = sensor
    bad = (x < 0) | (x >= w) | (y < 0) | (y >= h)
    if bad.any():
        k = int(bad.argmax())
        raise Broken(f"{where} has an event at {place(k)} outside the sensor: x = {x[k]}, y = {y[k]}, of {w} x {h} pixels")
    bad = (p != 0) & (p != 1)
    if bad.any():
        k = int(bad.argmax())
        raise Broken(f"{where} has an impossible polarity at {place(k)}: polarities are 0 and 1 (in .npz also -1 and 1)")
    bad = t[1:] < t[:-1]
    if bad.any():
        k = int(bad.argmax()) + 1
        raise Broken(f"{where} goes back in time at {place(k)}, from {t[k - 1]} to {t[k]} us: sort it or fetch it again")
    return Events(t.astype(np.int64), x.astype(np.int16), y.astype(np.int16), p.astype(np.int8))


_READERS: dict[str, Callable[[bytes, str, Sensor], Events]] = {".aedat": aedat, ".bin": n_mnist, ".npz": npz}
