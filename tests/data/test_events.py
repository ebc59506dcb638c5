"""Event recordings: formats and their faults, frames, the simulated camera, official layouts."""

from __future__ import annotations

import io
import os
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikerate.data import Data, load
from spikerate.data import events as formats
from spikerate.data.camera import saccades
from spikerate.data.digits import digits
from spikerate.data.events import Events, parse, read_file
from spikerate.data.frames import frames
from spikerate.data.recordings import (
    _CALTECH101,
    Recording,
    Recordings,
    cifar10_dvs,
    dvs128_gesture,
    event_folder,
    n_caltech101,
    n_mnist,
    read,
)
from spikerate.data.samples import Block
from support.recordings import (
    AEDAT3,
    SENSOR,
    moved,
    packet,
    polarity,
    put,
    some_events,
    write_aedat2,
    write_aedat3,
    write_bin,
    write_cifar10_dvs,
    write_folder,
    write_gestures,
    write_n_caltech101,
    write_n_mnist,
    write_npz,
)

Writer = Callable[[Events], bytes]


FORMATS: dict[str, tuple[str, Writer]] = {
    "aedat2": ("a.aedat", write_aedat2),
    "aedat3": ("a.aedat", write_aedat3),
    "bin": ("a.bin", write_bin),
    "npz": ("a.npz", write_npz),
}


def same(a: Events, b: Events) -> bool:
    return all(np.array_equal(u, v) for u, v in ((a.t, b.t), (a.x, b.x), (a.y, b.y), (a.p, b.p)))


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    file, write = FORMATS[name]
    e = some_events()
    back = parse(write(e), file.upper(), SENSOR)
    assert same(e, back)
    assert (back.t.dtype, back.x.dtype, back.p.dtype) == (np.int64, np.int16, np.int8)
    (tmp_path / file).write_bytes(write(e))
    assert same(e, read_file(tmp_path / file, SENSOR))


def test_addresses_of_a_dvs128_by_hand() -> None:
    raw = b"#!AER-DAT2.0\r\n" + struct.pack(">6I", 0x7F00, 5, 0x0001, 6, 0x8000 | 0x7F00, 6)
    e = parse(raw, "a.aedat", (128, 128))
    assert [e.t.tolist(), e.x.tolist(), e.y.tolist(), e.p.tolist()] == [[5, 6], [0, 127], [127, 127], [1, 0]]


def test_bits_of_n_mnist_by_hand() -> None:
    e = parse(bytes([3, 7, 0x80, 0x01, 0x02, 4, 8, 0x01, 0x00, 0x00]), "a.bin", SENSOR)
    assert [e.t.tolist(), e.x.tolist(), e.y.tolist(), e.p.tolist()] == [[258, 65536], [3, 4], [7, 8], [1, 0]]


def test_an_overflow_in_n_mnist_adds_to_all_later_times() -> None:
    """As its authors' own reader and all others do: y = 240 marks that 2 ** 13 us are to be added from there on."""
    events = [(3, 7, 100), (0, 240, 0), (4, 8, 50), (1, 240, 77), (255, 240, 0), (5, 9, 50), (5, 9, 51)]
    raw = b"".join(bytes([x, y, 0x80, t >> 8, t & 255]) for x, y, t in events)
    e = parse(raw, "a.bin", SENSOR)
    assert e.t.tolist() == [100, 8192 + 50, 3 * 8192 + 50, 3 * 8192 + 51]
    assert [e.x.tolist(), e.y.tolist(), e.p.tolist()] == [[3, 4, 5, 5], [7, 8, 9, 9], [1, 1, 1, 1]]
    with pytest.raises(ValueError, match="goes back in time at byte 10, from 100 to 50 us"):
        parse(raw[:5] + raw[:5] + raw[10:15], "a.bin", SENSOR)
    with pytest.raises(ValueError, match="outside the sensor: x = 4, y = 241"):
        parse(raw[:10] + bytes([4, 241]) + raw[12:], "a.bin", SENSOR)
    with pytest.raises(ValueError, match="no events"):
        parse(raw[5:10], "a.bin", SENSOR)


def test_aedat2_times_that_run_over_their_32_bits_go_on() -> None:
    """After 71 minutes of recording, and as often as it happens; a smaller step back is a fault."""
    t = [2**32 - 5, 2**32 - 1, 3, 2**31, 2**32 - 2, 0]
    raw = b"#!AER-DAT2.0\r\n" + b"".join(struct.pack(">2I", 0x7F00, time) for time in t)
    e = parse(raw, "a.aedat", (128, 128))
    assert e.t.tolist() == [2**32 - 5, 2**32 - 1, 2**32 + 3, 2**32 + 2**31, 2**33 - 2, 2**33]
    with pytest.raises(ValueError, match="goes back in time"):
        parse(raw[:-8] + struct.pack(">2I", 0x7F00, 2**31), "a.aedat", (128, 128))


def test_headers_of_both_line_endings_are_read() -> None:
    e = some_events(6)
    for raw in (write_aedat2(e), write_aedat3(e)):
        header, rest = raw.split(b"1 us\r\n" if b"1 us" in raw else b"#!END-HEADER\r\n")
        mark = b"1 us\n" if b"1 us" in raw else b"#!END-HEADER\n"
        assert same(parse(header.replace(b"\r\n", b"\n") + mark + rest, "a.aedat", SENSOR), e)


def test_aedat3_counts_overflows_and_leaves_invalid_events_out() -> None:
    e = some_events(6)
    raw = AEDAT3 + packet(1, polarity(e), 8) + packet(1, polarity(e, valid=0), 8, 1) + packet(1, polarity(e), 8, 2)
    back = parse(raw, "a.aedat", SENSOR)
    assert back.t.tolist() == [*e.t.tolist(), *(e.t + 2**32).tolist()]


def npz_of(**arrays: Any) -> bytes:
    e = some_events(5)
    file = io.BytesIO()
    np.savez(file, **{k: v for k, v in ({"t": e.t, "x": e.x, "y": e.y, "p": e.p} | arrays).items() if v is not None})
    return file.getvalue()


@pytest.mark.parametrize("p", [[1, 0, 1, 1, 0], [1, -1, 1, 1, -1], [True, False, True, True, False]])
def test_npz_knows_three_kinds_of_polarity(p: list[int]) -> None:
    assert parse(npz_of(p=np.array(p)), "a.npz", SENSOR).p.tolist() == [1, 0, 1, 1, 0]


def backwards(e: Events) -> Events:
    t = e.t.copy()
    t[[20, 40]] = t[[40, 20]]
    return moved(e, t=t)


FAULTS: dict[str, tuple[Callable[[Writer, Events], bytes], str]] = {
    "truncated": (lambda write, e: write(e)[:-3], "is cut|truncated"),
    "no byte at all": (lambda write, e: b"", "no events|no header|no NumPy archive"),
    "no event": (lambda write, e: write(e[:0]), "no events"),
    "outside": (lambda write, e: write(moved(e, x=e.x + (np.arange(len(e)) == 30) * 64)), "outside the sensor|outside"),
    "backwards": (lambda write, e: write(backwards(e)), "goes back in time"),
    "text": (lambda write, e: b"To be, or not to be, that is the question", "is cut|no header|no NumPy|outside"),
    "cut in the middle": (lambda write, e: write(e)[: len(write(e)) // 2 + 1], "is cut|truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_fault_is_named(name: str, fault: str, tmp_path: Path) -> None:
    (file, write), (spoil, reason) = FORMATS[name], FAULTS[fault]
    with pytest.raises(ValueError, match=reason) as error:
        parse(spoil(write, some_events()), file, SENSOR)
    assert str(error.value).startswith(file)
    assert "\n" not in str(error.value)
    (tmp_path / file).write_bytes(spoil(write, some_events()))
    (sentence,) = read([Recording(tmp_path / file, 0)], SENSOR)
    assert isinstance(sentence, str)
    assert sentence.startswith(str(tmp_path / file))


def huge_packet() -> bytes:
    return AEDAT3 + struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, 2**31, 2**31, 2**31) + bytes(80)


def forged_npz(n: int, kind: str = "<i8") -> bytes:
    """t says to have n numbers."""
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": (n,)})
    with zipfile.ZipFile(file, "w") as archive:
        for name in "txyp":
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(40))
    return file.getvalue()


def packed_npz(**sizes: int) -> bytes:
    """Arrays of so many bytes, all of them 0, which deflate makes a thousandth of."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "txyp":
            header = io.BytesIO()
            shape = (sizes.get(name, 10),)
            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(shape[0]))
    return file.getvalue()


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "txyp":
            archive.writestr(f"{name}.npy", b"")
    raw = bytearray(file.getvalue())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 0xF0000000)
    return bytes(raw)


def little_endian(raw: bytes) -> bytes:
    start = raw.rindex(b"1 us\r\n") + 6
    return raw[:start] + np.frombuffer(raw, ">u4", offset=start).astype("<u4").tobytes()


def shifted(raw: bytes) -> bytes:
    start = raw.rindex(b"1 us\r\n") + 6
    return raw[:start] + b"\0" + raw[start:-1]


ONLY_SOME: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "aedat2 little-endian": (
        "a.aedat",
        lambda: little_endian(write_aedat2(some_events())),
        "address 0x.* at byte 7.*little-endian",
    ),
    "aedat2 header without end": ("a.aedat", lambda: b"#" * 100_000, "header without an end"),
    "aedat2 shifted by a byte": ("a.aedat", lambda: shifted(write_aedat2(some_events())), "address 0x"),
    "aedat 1": ("a.aedat", lambda: b"#!AER-DAT1.0\r\n" + bytes(80), "version 1.0"),
    "aedat 4 named .aedat": ("a.aedat", lambda: b"#!AER-DAT4.0\r\n" + bytes(80), "version 4.0.*named .aedat4"),
    "aedat3 without end of header": ("a.aedat", lambda: AEDAT3[:-8] + bytes(80), "no line #!END-HEADER"),
    "aedat3 of no packets": ("a.aedat", lambda: AEDAT3, "no events"),
    "aedat3 big-endian": (
        "a.aedat",
        lambda: AEDAT3 + struct.pack(">HHIIIIII", 1, 1, 8, 4, 0, 1, 1, 1) + bytes(8),
        "no packet",
    ),
    "aedat3 huge packet": ("a.aedat", huge_packet, "cut inside the packet at byte 61.*2147483648 events"),
    "aedat3 negative time": ("a.aedat", lambda: AEDAT3 + packet(1, struct.pack("<4I", 1, 9, 1, 2**31), 8), "back in time"),
    "bin of other endianness": ("a.bin", lambda: write_bin(some_events())[::-1], "outside|back in time"),
    "npz forged long": ("a.npz", lambda: forged_npz(2**60), "array t whose header gives another length"),
    "npz forged negative": ("a.npz", lambda: forged_npz(-1), "array t|no NumPy"),
    "npz of objects": ("a.npz", lambda: npz_of(t=np.array([1, 2, 3, 4, None])), "array t.*integers"),
    "npz of floats": ("a.npz", lambda: npz_of(t=np.arange(5.0)), "array t.*integers"),
    "npz of tables": ("a.npz", lambda: npz_of(t=np.zeros((5, 1), int)), "array t.*integers"),
    "npz of unlike lengths": ("a.npz", lambda: npz_of(t=np.arange(4)), "4, 5, 5 and 5"),
    "npz without p": ("a.npz", lambda: npz_of(p=None), "0 arrays p"),
    "npz of huge times": ("a.npz", lambda: npz_of(t=np.full(5, 2**63, np.uint64)), "63 bits at event 0"),
    "npz polarity 2": ("a.npz", lambda: npz_of(p=np.array([0, 1, 2, 0, 1])), "polarity at event 2"),
    "npz polarity -1, 0, 1": ("a.npz", lambda: npz_of(p=np.array([-1, 1, 0, 1, 1])), "polarity at event 2"),
    "npz left of the sensor": ("a.npz", lambda: npz_of(x=np.array([0, 1, 2, -1, 1])), "event 3 outside"),
    "npz that says to be a bomb": ("a.npz", bomb, "member 't.npy' of 4,026,531,840 bytes"),
    "npz bomb": ("a.npz", lambda: packed_npz(t=2**25), r"member 't.npy', which unpacks from 32,\d+ to 33,554,\d+ bytes"),
    "unknown suffix": ("a.txt", lambda: b"1 2 3 4", "should end in .aedat, .bin, .npz or .aedat4"),
}


@pytest.mark.parametrize("fault", ONLY_SOME)
def test_a_fault_of_one_format_is_named(fault: str) -> None:
    file, raw, reason = ONLY_SOME[fault]
    with pytest.raises(ValueError, match=reason) as error:
        parse(raw(), file, SENSOR)
    assert str(error.value).startswith(file)


def test_faults_have_their_place() -> None:
    e = some_events()
    outside = moved(e, y=np.where(np.arange(len(e)) == 30, 99, e.y))
    with pytest.raises(ValueError, match=r"at byte 150 outside the sensor: x = .*, y = 99, of 34 x 34 pixels"):
        parse(write_bin(outside), "a.bin", SENSOR)
    start = len(write_aedat2(e)) - 8 * len(e)
    with pytest.raises(ValueError, match=f"at byte {start + 240} outside"):
        parse(write_aedat2(outside), "a.aedat", SENSOR)
    third = len(AEDAT3) + 28 + 25 * 8 + 28 + 60 + 28 + 28
    with pytest.raises(ValueError, match=f"at byte {third + 40} outside"):
        parse(write_aedat3(outside), "a.aedat", SENSOR)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_raise_anything_else(name: str, data: st.DataObject) -> None:
    file, write = FORMATS[name]
    raw = bytearray(write(some_events(20)))
    if data.draw(st.booleans()):
        raw = bytearray(raw[: data.draw(st.integers(0, 80))] + data.draw(st.binary(max_size=300)))
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        e: Events | None = parse(bytes(raw), file, SENSOR)
        sentence = ""
    except ValueError as error:
        e, sentence = None, str(error)
    if e is None:
        assert sentence.startswith(file)
        assert "\n" not in sentence
    else:
        assert (np.diff(e.t) >= 0).all()
        assert frames(e, 1, SENSOR, "time").sum() == len(e)


def test_what_is_no_file_is_no_recording(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.bin")
    (tmp_path / "b.bin").mkdir()
    (tmp_path / "c.bin").symlink_to("nowhere")
    with (tmp_path / "d.npz").open("wb") as file:
        file.truncate(2**40)
    found = read([Recording(tmp_path / name, 0) for name in ("a.bin", "b.bin", "c.bin", "d.npz", "e.npz")], SENSOR)
    assert all(isinstance(f, str) for f in found)


class Decoder:
    """Stands for that of the package aedat."""

    def __init__(self, file: Path) -> None:
        self.raw = file.read_bytes()

    def __iter__(self) -> Any:
        kind = np.dtype([("t", "<u8"), ("x", "<u2"), ("y", "<u2"), (("p", "on"), "?")])
        if self.raw == b"broken":
            raise BaseException("a panic")
        for rows in ([(5, 1, 2, True)], [(6, 3, 4, False)]):
            yield {"stream_id": 0, "events": np.array(rows, kind)}
            yield {"stream_id": 1, "imus": None}


def test_aedat4_by_another_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "a.aedat4"
    file.write_bytes(b"fine")
    monkeypatch.setitem(sys.modules, "aedat", types.SimpleNamespace(Decoder=Decoder))
    assert same(read_file(file, SENSOR), Events(*map(np.array, ([5, 6], [1, 3], [2, 4], [1, 0]))))
    with pytest.raises(ValueError, match="at event 1 outside"):
        read_file(file, (4, 3))
    file.write_bytes(b"broken")
    assert "can't be decoded (BaseException)" in str(read([Recording(file, 0)], SENSOR)[0])
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(ValueError, match=r"pip install 'spikerate\[aedat\]'"):
        read([Recording(file, 0)], SENSOR)  # the recording is not to blame


def slow_frames(e: Events, T: int, sensor: tuple[int, int], by: str) -> np.ndarray:
    counts = np.zeros((T, 2, *sensor), int)
    for k in range(len(e)):
        passed = int(e.t[k] - e.t[0]) * T // max(1, int(e.t[-1] - e.t[0]))
        frame = k // (len(e) // T) if by == "number" else passed
        counts[min(frame, T - 1), e.p[k], e.y[k], e.x[k]] += 1
    return counts


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 90), T=st.integers(1, 12), seed=st.integers(0, 9), scale=st.sampled_from([1, 10, 10**6]))
@pytest.mark.parametrize("by", ["number", "time"])
def test_frames_are_those_of_a_loop(by: Any, n: int, T: int, seed: int, scale: int) -> None:
    e = some_events(n, 5, seed)
    e = moved(e, t=e.t * scale // 10**5)
    if n < T:
        with pytest.raises(ValueError, match=f"{n} events can't be cut into {T} slices"):
            frames(e, T, (6, 5), by)
        return
    found = frames(e, T, (6, 5), by)
    assert found.dtype == np.int16
    assert found.shape == (T, 2, 6, 5)
    assert found.sum() == n
    if e.t[-1] > e.t[0] or by == "number":
        assert np.array_equal(found, slow_frames(e, T, (6, 5), by))


def test_frames_refuse_what_they_cannot_count() -> None:
    n = 32_768
    zeros = np.zeros(n, np.int16)
    e = Events(np.arange(n), zeros, zeros, zeros.astype(np.int8))
    with pytest.raises(ValueError, match="32,768 events in one of 1 slices"):
        frames(e, 1, (2, 2), "number")
    assert frames(e, 2, (2, 2), "number").max() == n // 2
    with pytest.raises(ValueError, match="outside a sensor of 20 x 30 pixels"):
        frames(some_events(), 2, (20, 30), "time")
    with pytest.raises(ValueError, match="give a T"):
        frames(e, 0, (2, 2), "time")


def test_times_far_apart_do_not_overflow() -> None:
    e = some_events(3)
    e = moved(e, t=np.array([-(2**62), 0, 2**62]))
    assert frames(e, 3, SENSOR, "time").sum((1, 2, 3)).tolist() == [1, 1, 1]


def test_the_camera_sees_every_digit() -> None:
    images = next(digits().test.read([Block(torch.arange(200))], torch.device("cpu")))[:, 0].numpy() / 255
    recordings = saccades(images)
    assert len(recordings) == 200
    for e, again in zip(recordings, saccades(images[::-1])[::-1], strict=True):
        assert same(e, again)  # neither chance nor neighbours matter
        assert len(e) >= 100
        assert (np.diff(e.t) >= 0).all()
        assert e.t[0] >= 0
        assert e.t[-1] <= 300_000
        assert min(e.x.min(), e.y.min()) >= 0
        assert max(e.x.max(), e.y.max()) < 16
        net = np.zeros((16, 16), int)
        np.add.at(net, (e.y, e.x), 2 * e.p.astype(int) - 1)
        assert not net.any()  # the way is closed: each pixel ends as bright as it began


def test_the_camera_sees_nothing_in_the_dark_and_on_events_first_in_the_light() -> None:
    dark = np.zeros((2, 8, 8))
    assert [len(e) for e in saccades(dark)] == [0, 0]
    edge = dark.copy()
    edge[:, :, :4] = 1
    e, again = saccades(edge)
    assert same(e, again)
    right = (e.x == e.x.max()) & (e.y == 8)
    assert e.p[right][0] == 1  # the first saccade leads the bright half to the right
    left = (e.x == e.x.min()) & (e.y == 8)
    assert e.p[left][0] == 0
    fewer, _ = saccades(edge, threshold=0.4)
    assert 0 < len(fewer) < 0.6 * len(e)


def test_the_camera_fills_a_large_sensor() -> None:
    (e,) = saccades(np.ones((1, 8, 8)), (240, 320))
    assert 0 <= e.x.min() < 20 < 300 < e.x.max() < 320
    assert 0 <= e.y.min() < 20 < 220 < e.y.max() < 240


def test_the_camera_refuses_what_it_cannot_see() -> None:
    for images in (np.zeros((8, 8)), np.zeros((0, 8, 8)), np.full((1, 8, 8), 2.0), np.full((1, 8, 8), np.nan)):
        with pytest.raises(ValueError, match="values from 0 to 1"):
            saccades(images)
    with pytest.raises(ValueError, match="sensor of at least 33 x 33"):
        saccades(np.zeros((1, 28, 28)))
    with pytest.raises(ValueError, match="contrast threshold"):
        saccades(np.zeros((1, 8, 8)), threshold=0)


LAYOUTS = {
    "cifar10-dvs": write_cifar10_dvs,
    "n-mnist": write_n_mnist,
    "n-caltech101": write_n_caltech101,
    "dvs128-gesture": write_gestures,
    "events": write_folder,
}
SIZES = {
    "cifar10-dvs": (20, 0),
    "n-mnist": (30, 20),
    "n-caltech101": (101, 101),
    "dvs128-gesture": (22, 11),
    "events": (3, 3),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_lists_its_recordings(name: str, tmp_path: Path) -> None:
    data = LAYOUTS[name](tmp_path)
    assert (len(data.train), len(data.test)) == SIZES[name]
    assert data.name == name
    for part in (data.train, data.test):
        if part:
            assert {r.label for r in part} == set(range(len(data.classes)))
        found = read(part, data.sensor)
        assert all(isinstance(e, Events) for e in found)
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    assert open_again(name, tmp_path) == data
    read(data.train, data.sensor)
    assert before == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}  # nothing is written


def test_recordings_carry_their_own_labels(tmp_path: Path) -> None:
    data = write_cifar10_dvs(tmp_path)
    for k, (r, e) in enumerate(zip(data.train, read(data.train, data.sensor), strict=True)):
        assert r.label == k // 2
        assert isinstance(e, Events)
        assert same(e, some_events(20, 128, k))


def test_classes_of_n_caltech101_are_those_of_the_distribution() -> None:
    assert len(_CALTECH101) == 101
    assert list(_CALTECH101) == sorted(set(_CALTECH101))
    assert {"BACKGROUND_Google", "Faces_easy", "Leopards", "Motorbikes"} == {c for c in _CALTECH101 if c[0].isupper()}
    assert "Faces" not in _CALTECH101  # the distribution leaves it out


@pytest.fixture(scope="module")
def caltech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty files, since listing opens none: 31 of the first class, 2 of the second, and so on, 45 of the last."""
    root = tmp_path_factory.mktemp("caltech") / "Caltech101"
    for label, name in enumerate(_CALTECH101):
        (root / name).mkdir(parents=True)
        for i in range({0: 31, 100: 45}.get(label, 2)):
            (root / name / f"image_{i + 1:04d}.bin").touch()
    return root


def test_a_tenth_of_each_class_of_n_caltech101_is_the_test_set(caltech: Path) -> None:
    data = n_caltech101(caltech)
    for part, counts in ((data.train, {0: 28, 100: 41}), (data.test, {0: 3, 100: 4})):
        labels = [r.label for r in part]
        assert labels == sorted(labels)
        assert [labels.count(k) for k in range(101)] == [counts.get(k, 1) for k in range(101)]
        assert all(r.file.parent.name == _CALTECH101[r.label] for r in part)
    files = [r.file for r in (*data.train, *data.test)]
    assert len(set(files)) == len(files) == 31 + 45 + 2 * 99
    # The numbers are the promise: a new version of this code draws the same recordings.
    assert [r.file.stem[-2:] for r in data.test if r.label in (0, 100)] == ["03", "12", "26", "18", "21", "37", "38"]
    assert "default_rng((0, label))" in data.split


def test_the_test_set_of_a_class_does_not_depend_on_the_others(caltech: Path, tmp_path: Path) -> None:
    before = n_caltech101(caltech)
    for name in _CALTECH101[:100]:
        (tmp_path / name).mkdir()
        for i in range(7):
            (tmp_path / name / f"image_{i:04d}.bin").touch()
    (tmp_path / _CALTECH101[100]).symlink_to(caltech / _CALTECH101[100])
    after = n_caltech101(tmp_path)
    assert [r.file.name for r in before.test if r.label == 100] == [r.file.name for r in after.test if r.label == 100]


def test_recordings_of_n_caltech101_fill_their_sensor() -> None:
    corners = bytes([0, 0, 0x80, 0, 1]) + bytes([239, 179, 0, 0, 2])
    e = parse(corners, "image_0001.bin", (180, 240))
    assert [e.x.tolist(), e.y.tolist(), e.p.tolist(), e.t.tolist()] == [[0, 239], [0, 179], [1, 0], [1, 2]]
    for x, y in ((240, 0), (0, 180)):
        with pytest.raises(
            ValueError, match=rf"image_0001\.bin has an event at byte 5 outside the sensor: x = {x}, y = {y}"
        ):
            parse(corners[:5] + bytes([x, y, 0, 0, 2]), "image_0001.bin", (180, 240))


def test_n_caltech101_is_loaded_with_its_split(tmp_path: Path) -> None:
    listed = write_n_caltech101(tmp_path)
    listed.test[3].file.write_bytes(b"\x01")
    settings = Data("n-caltech101", tmp_path, validation=5, size=12, broken="skip", cache=tmp_path / "cache", workers=0)
    data = load(settings, 1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [96, 5, 100]
    assert data.shape == (2, 12, 12)
    assert data.test.labels.tolist() == [label for label in range(101) if label != 3]
    assert data.split.startswith("test samples are a tenth of each class, drawn by NumPy")
    assert (data.skipped, data.classes) == (
        (f"{listed.test[3].file} is cut inside the event at byte 0: fetch it again",),
        _CALTECH101,
    )


def test_a_link_to_nowhere_is_a_broken_recording(tmp_path: Path) -> None:
    file = write_n_mnist(tmp_path).train[10].file
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    data = Data("n-mnist", tmp_path, cache=tmp_path / "cache", workers=0)
    with pytest.raises(ValueError, match=f"{file} can't be read: No such file or directory; --data.broken skip leaves"):
        load(data, 2)
    assert load(replace(data, broken="skip"), 2).skipped == (f"{file} can't be read: No such file or directory",)


def test_gestures_are_cut_out_of_their_trial(tmp_path: Path) -> None:
    data = write_gestures(tmp_path)
    for r, e in zip(data.test, read(data.test, data.sensor), strict=True):
        assert isinstance(e, Events)
        assert e.t.tolist() == list(range(1000 * (r.label + 1), 1000 * (r.label + 1) + 1500, 10))
    (sentence,) = read([Recording(data.test[0].file, 0, span=(10**8, 10**9))], data.sensor)
    assert "no events from 100000000 to 1000000000 us" in str(sentence)


def test_one_broken_recording_spoils_no_other(tmp_path: Path) -> None:
    data = write_cifar10_dvs(tmp_path)
    (tmp_path / "airplane" / "cifar10_airplane_0.aedat").write_bytes(b"")
    raw = bytearray((tmp_path / "automobile.zip").read_bytes())
    raw[raw.index(b"cifar10_automobile_1") + 60] ^= 255
    (tmp_path / "automobile.zip").write_bytes(raw)
    (tmp_path / "cat.zip").write_bytes(b"PK")
    broken = [k for k, e in enumerate(read(data.train, data.sensor)) if isinstance(e, str)]
    assert broken == [0, 3, 6, 7]


def zipped(file: Path, *members: str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for member in members:
            archive.writestr(member, write_aedat2(some_events()))


def rename(a: Path, b: str) -> None:
    a.rename(a.with_name(b))


def drop(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def copy(a: Path, b: str) -> None:
    put(a.with_name(b), a.read_bytes())


def longer(file: Path) -> None:
    """Blank lines, and behind them something that would be read."""
    file.write_bytes(file.read_bytes() + b"\n" * 2**20 + b"user24_led.aedat")


BROKEN_LAYOUTS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("cifar10-dvs", lambda p: drop(p / "bird"), "neither a folder bird nor bird.zip"),
    ("cifar10-dvs", lambda p: (p / "cat.zip").unlink(), "neither a folder cat nor cat.zip"),
    ("cifar10-dvs", lambda p: copy(p / "cat.zip", "bird.zip"), "has bird and bird.zip"),
    ("cifar10-dvs", lambda p: copy(p / "cat.zip", "cat.ZIP"), "has cat.ZIP and cat.zip"),
    (
        "cifar10-dvs",
        lambda p: copy(p / "bird" / "cifar10_bird_0.aedat", "cifar10_bird_0.AEDAT"),
        "2 recordings .* cifar10_bird_0",
    ),
    (
        "cifar10-dvs",
        lambda p: copy(p / "bird" / "cifar10_bird_0.aedat", "cifar10_bird_0.aedat4"),
        "2 recordings .* cifar10_bird_0",
    ),
    ("cifar10-dvs", lambda p: (p / "cat.zip").write_bytes(b"PK"), "cat.zip is truncated or no zip"),
    ("cifar10-dvs", lambda p: zipped(p / "cat.zip", "../a.aedat"), "leaves its folder"),
    ("cifar10-dvs", lambda p: zipped(p / "cat.zip", "/a.aedat"), "leaves its folder"),
    ("cifar10-dvs", lambda p: zipped(p / "cat.zip", "a.aedat", "a.aedat"), "2 recordings of the name a"),
    ("cifar10-dvs", lambda p: zipped(p / "cat.zip", "1/a.aedat", "2/a.AEDAT"), "2 recordings of the name a"),
    ("cifar10-dvs", lambda p: zipped(p / "cat.zip", "a.txt"), "no recordings"),
    ("n-mnist", lambda p: drop(p / "N-MNIST/Test/7"), "Test has no folder of the class 7"),
    ("n-mnist", lambda p: rename(p / "N-MNIST/Test", "test"), "Test has no folder of the class 0"),
    ("n-mnist", lambda p: [f.unlink() for f in (p / "N-MNIST/Train/3").iterdir()], "3 has no recordings"),
    ("n-mnist", lambda p: copy(p / "N-MNIST/Train/3/00001.bin", "00001.BIN"), "2 recordings of the name 00001"),
    ("n-caltech101", lambda p: drop(p / "Caltech101/Faces_easy"), "Caltech101 has no folder of the class Faces_easy"),
    ("n-caltech101", lambda p: rename(p / "Caltech101/emu", "Emu"), "Caltech101 has no folder of the class emu"),
    ("n-caltech101", lambda p: [f.unlink() for f in (p / "Caltech101/emu").iterdir()], "emu has no recordings"),
    ("n-caltech101", lambda p: (p / "Caltech101/emu/image_0001.bin").unlink(), "emu has one recording, and to train and"),
    ("n-caltech101", lambda p: copy(p / "Caltech101/emu/image_0001.bin", "image_0001.BIN"), "2 recordings .* image_0001"),
    ("dvs128-gesture", lambda p: (p / "trials_to_test.txt").unlink(), "trials_to_test.txt does not exist"),
    ("dvs128-gesture", lambda p: (p / "user24_led.aedat").unlink(), "lists user24_led.aedat, which does not exist"),
    ("dvs128-gesture", lambda p: (p / "user24_led_labels.csv").unlink(), "user24_led_labels.csv does not exist"),
    ("dvs128-gesture", lambda p: copy(p / "trials_to_train.txt", "trials_to_test.txt"), "for training and for the test"),
    ("dvs128-gesture", lambda p: put(p / "trials_to_test.txt", b"../user24_led.aedat\n"), "no name of an .aedat file"),
    ("dvs128-gesture", lambda p: put(p / "trials_to_test.txt", b"user24_led.aedat\n" * 2), "2 times"),
    ("dvs128-gesture", lambda p: put(p / "trials_to_test.txt", b"\xff\xfe"), "no text at byte 0"),
    ("dvs128-gesture", lambda p: put(p / "trials_to_test.txt", b""), "no test recording of the class hand clapping"),
    ("dvs128-gesture", lambda p: put(p / "user24_led_labels.csv", b"a,b\n"), "no first line"),
    ("dvs128-gesture", lambda p: longer(p / "user24_led_labels.csv"), "more than 1,048,576 bytes"),
    ("dvs128-gesture", lambda p: longer(p / "trials_to_train.txt"), "more than 1,048,576 bytes"),
    ("dvs128-gesture", lambda p: put(p / "user24_led_labels.csv", b"class,startTime_usec,endTime_usec\n1,2\n"), "in line 2"),
    (
        "dvs128-gesture",
        lambda p: put(p / "user24_led_labels.csv", b"class,startTime_usec,endTime_usec\n12,2,3\n"),
        "1 to 11",
    ),
    (
        "dvs128-gesture",
        lambda p: put(p / "user24_led_labels.csv", b"class,startTime_usec,endTime_usec\n1,3,3\n"),
        "start is before end",
    ),
    ("events", lambda p: drop(p / "val/b"), "the class b is in .*train only"),
    ("events", lambda p: drop(p / "train/b"), "the class b is in .*val only"),
    ("events", lambda p: [f.unlink() for f in (p / "train/b").iterdir()], "the class b has no recordings"),
    ("events", lambda p: copy(p / "train/b/1.npz", "1.NPZ"), "exists twice"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("name", "spoil", "reason"), BROKEN_LAYOUTS, ids=[f"{n}: {r}" for n, _, r in BROKEN_LAYOUTS])
def test_a_broken_layout_is_refused(name: str, spoil: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=reason):
        open_again(name, tmp_path)


def open_again(name: str, path: Path) -> Recordings:
    openers = {
        "cifar10-dvs": cifar10_dvs,
        "n-mnist": n_mnist,
        "n-caltech101": n_caltech101,
        "dvs128-gesture": dvs128_gesture,
    }
    return event_folder(path, SENSOR) if name == "events" else openers[name](path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_folder_and_an_empty_one_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_again(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has neither|no folder of the class|does not exist|0 class folders"):
        open_again(name, tmp_path)


def test_class_folders_alone_have_no_test_part(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = event_folder(tmp_path / "train", SENSOR)
    assert (len(data.train), data.test, data.classes) == (3, (), ("a", "b", "c"))


def test_a_validation_part_and_what_is_not_read_of_ones_own_recordings(tmp_path: Path) -> None:
    write_folder(tmp_path)
    rename(tmp_path / "val", "valid")
    for k, name in enumerate("abc"):
        put(tmp_path / "test" / name / "2.npz", write_npz(some_events(20, 34, 9 + k)))
    put(tmp_path / "test" / "a" / "3.h5", b"another format")
    data = load(Data("events", tmp_path, sensor=SENSOR, cache=tmp_path / "cache", workers=0), 2)
    assert [part.labels.tolist() for part in (data.train, data.validation, data.test)] == [[0, 1, 2]] * 3
    for part, seed in ((data.validation, 0), (data.test, 9)):
        (x,) = part.read([Block(torch.arange(3))], torch.device("cpu"))
        assert np.array_equal(x[1], frames(some_events(20, 34, seed + 1), 2, SENSOR, "number"))
    assert "validation samples are those of the folder valid" in data.split
    assert f"not read in {tmp_path}: files of .h5 (1); recordings are files that end in .npz" in data.notes


def test_aedat4_files_need_their_package_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_cifar10_dvs(tmp_path)
    put(tmp_path / "bird" / "more.aedat4", b"")
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(ValueError, match="pip install"):
        cifar10_dvs(tmp_path)


def test_all_real_recordings_of_n_mnist_are_read(real_data: Callable[[str], Path]) -> None:
    data = n_mnist(real_data("nmnist"))
    assert (len(data.train), len(data.test)) == (1000, 100)
    for r, e in zip((*data.train, *data.test), read((*data.train, *data.test), data.sensor), strict=True):
        assert isinstance(e, Events), e
        assert len(e) * 5 == r.file.stat().st_size
        assert 250_000 < e.t[-1] < 350_000
        for by in ("number", "time"):
            assert frames(e, 10, data.sensor, by).sum() == len(e)  # type: ignore[arg-type]


def test_the_largest_sizes_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(formats, "LARGEST", 400)
    put(tmp_path / "a.bin", bytes(405))
    with zipfile.ZipFile(tmp_path / "cat.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.aedat", bytes(401))
        archive.writestr("b.aedat", b"#!AER-DAT2.0\n" + bytes(8))
    found = read(
        [Recording(tmp_path / "a.bin", 0), *(Recording(tmp_path / "cat.zip", 0, f"{k}.aedat") for k in "ab")], (128, 128)
    )
    assert [isinstance(e, str) for e in found] == [True, True, False]
    with pytest.raises(ValueError, match="arrays of 712 bytes, more than any recording"):
        parse(packed_npz(t=60, x=60, y=60, p=20), "a.npz", SENSOR)
    with pytest.raises(ValueError, match="has 51 events, more than any recording"):
        parse(write_bin(some_events(51)), "a.bin", SENSOR)


def test_a_bomb_in_a_zip_of_recordings_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "cat.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.aedat", b"#!AER-DAT2.0\n" + bytes(2**25))
    (found,) = read([Recording(tmp_path / "cat.zip", 0, "a.aedat")], (128, 128))
    assert "no recording does, don't trust it" in str(found)
