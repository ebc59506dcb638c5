"""Spoken words as spikes: no official file is at hand, so these write small ones in the official layout."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikerate.data import Augment, Block, Data, DataSet, check, load, sample_files
from spikerate.data.sounds import binned, shd, ssc
from support.sounds import SHD, SSC, some_spikes, write_set, write_sounds

h5py = pytest.importorskip("h5py")
LAYOUTS = {"shd": (shd, SHD, (40, 0, 20)), "ssc": (ssc, SSC, (40, 35, 35))}


def loaded(name: str, path: Path, T: int, **settings: Any) -> DataSet:
    return load(Data(name, path, cache=path / "cache", workers=0, **{"frames": "time"} | settings), T)  # type: ignore[arg-type]


@given(
    st.integers(0, 99),
    st.integers(1, 60),
    st.integers(1, 12),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_each_spike_is_in_the_slice_of_its_time_or_place(seed: int, n: int, T: int, dtype: Any, by_time: bool) -> None:
    t, unit = some_spikes(seed, n + T, 2.0)
    found = binned(np.sort(t.astype(dtype)), unit, T, 1.4, "time" if by_time else "number")
    wanted = np.zeros((T, 700), int)
    for k, (time, channel) in enumerate(zip(t.astype(np.float64), unit, strict=True)):
        slices = [a for a in range(T) if a * 1.4 / T <= time] if by_time else [k // (len(t) // T)]
        wanted[min(slices[-1], T - 1), channel] += 1
    assert found.dtype == np.uint8 and np.array_equal(found, wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_is_read_into_frames_of_its_channels(name: str, tmp_path: Path) -> None:
    write_set(tmp_path, name)
    layout, keys, sizes = LAYOUTS[name]
    assert layout(tmp_path).classes == tuple(keys)
    data = loaded(name, tmp_path, 7)
    parts = {"train": data.train, "valid": data.validation, "test": data.test}
    assert tuple(map(len, parts.values())) == sizes
    assert (data.shape, data.classes, data.units.mean) == ((1, 1, 700), tuple(keys), (0.0,))
    seconds = {"shd": 1.4, "ssc": 1.0}[name]
    for part, samples in parts.items():
        if len(samples):
            assert samples.labels.tolist() == [k % len(keys) for k in range(len(samples))]
            (x,) = samples.read([Block(torch.arange(len(samples)))], torch.device("cpu"))
            wanted = [binned(*some_spikes(len(part) + k), 7, seconds) for k in range(len(samples))]
            assert np.array_equal(x.flatten(2), np.stack(wanted))  # [B, T, 700]
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
    assert loaded(name, tmp_path, 7).checksums == data.checksums  # from the cache
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()} == before


def test_a_validation_set_is_drawn_where_there_is_none_and_refused_where_there_is_one(tmp_path: Path) -> None:
    for name in LAYOUTS:
        write_set(tmp_path, name)
    data = loaded("shd", tmp_path, 3, validation=10)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 20)
    with pytest.raises(ValueError, match="ssc has 35 validation samples of its own"):
        loaded("ssc", tmp_path, 3, validation=10)


def test_a_short_word_ends_in_silence_and_equal_numbers_have_no_silence() -> None:
    t, unit = np.array([0.0, 0.1, 0.34, 0.36], np.float32), np.array([0, 699, 5, 5])
    assert binned(t, unit, 4, 1.4).sum(1).tolist() == [3, 1, 0, 0]
    assert binned(t, unit, 4, 1.4, "number").sum(1).tolist() == [1, 1, 1, 1]
    assert binned(t + 5, unit, 4, 1.4).sum(1).tolist() == [0, 0, 0, 4]  # what comes later is in the last slice


T, U = np.array([0.1, 0.2, 0.3], np.float16), np.array([1, 2, 3], np.uint16)
BROKEN_WORDS: list[tuple[Any, Any, str]] = [
    (T[::-1], U, "spike 1 at 0.199951 s comes after one at 0.300049 s"),
    (np.array([0.1, np.nan, 0.3], np.float16), U, "the time of spike 1 is nan"),
    (np.array([0.1, 0.2, np.inf], np.float16), U, "the time of spike 2 is inf"),
    (np.array([-0.1, 0.2, 0.3], np.float16), U, "the time of spike 0 is -0.0999756"),
    (T * np.float16(1000), U, "times are seconds from 0 to 60"),
    (T, np.array([1, 700, 3], np.uint16), "the unit of spike 1 is 700"),
    (T, np.array([1, 2, -3], np.int16), "the unit of spike 2 is -3"),
    (T, U[:2], "it has 3 times and 2 units"),
    (T[:0], U[:0], "it has 0 spikes"),
    (T, U.astype(np.float32), "its units no list of whole numbers"),
    (np.array([1, 2, 3]), U, "its times are no list of fractions"),
    (np.full(300, 0.1, np.float16), np.full(300, 7), "a channel has 300 spikes in one of 2 slices"),
]


@pytest.mark.parametrize(("t", "unit", "words"), BROKEN_WORDS, ids=[words for *_, words in BROKEN_WORDS])
def test_a_broken_word_is_refused(t: Any, unit: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        binned(t, unit, 2, 1.4)
    assert "\n" not in str(error.value)


def test_a_broken_recording_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    write_set(tmp_path, "shd", 20)
    spikes = [some_spikes(k) for k in range(20)]
    write_sounds(tmp_path / "shd_train.h5", [*spikes, (T[::-1], U)], np.arange(21) % 20, SHD)
    with pytest.raises(ValueError, match=r"shd_train.h5, recording 20: spike 1 at .*; --data.broken skip") as error:
        loaded("shd", tmp_path, 2)
    assert "\n" not in str(error.value)
    data = loaded("shd", tmp_path, 2, broken="skip")
    assert len(data.train) == len(data.test) == 20 and "recording 20: spike 1" in data.skipped[0]


def test_equal_numbers_need_as_many_spikes_as_slices() -> None:
    with pytest.raises(ValueError, match="3 spikes can't be cut into 4 slices"):
        binned(T, U, 4, 1.4, "number")


def edit(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edited(file: Path) -> None:
        with h5py.File(file, "a") as content:
            change(content)

    return edited


def replaced(name: str, value: Any) -> Callable[[Path], None]:
    def change(content: Any) -> None:
        del content[name]
        content[name] = value

    return edit(change)


def packed(file: Path) -> None:
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


BROKEN_FILES: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: f.write_bytes(b"no HDF5"), "is no file of these sounds, or truncated: .*signature"),
    (lambda f: f.write_bytes(f.read_bytes()[:3000]), "is no file of these sounds, or truncated"),
    (lambda f: f.unlink(), "the file does not exist"),
    (packed, "is packed: unpack it by gunzip"),
    (edit(lambda c: c.__delitem__("spikes")), "it has no spikes/times"),
    (edit(lambda c: c.__delitem__("spikes/units")), "it has no spikes/units"),
    (edit(lambda c: c.__delitem__("labels")), "it has no labels"),
    (replaced("labels", np.arange(19)), r"not of one length \(spikes/times \[20\], spikes/units \[20\], labels \[19\]\)"),
    (replaced("labels", np.arange(20) + 1), "the label of recording 19 is 20, and labels are 0 to 19"),
    (replaced("labels", np.arange(20) - 1), "the label of recording 0 is -1"),
    (replaced("labels", np.linspace(0, 1, 20)), "its labels are 20 of float64"),
    (replaced("spikes/times", np.zeros((20, 5))), "not of one length"),
    (replaced("extra/keys", np.array([b"a"] * 20)), "its extra/keys are 1 different words"),
    (replaced("extra/keys", np.array([b"%d" % k for k in range(20)])), "have other words for their labels"),
    (edit(lambda c: c.__setitem__("extra/more", h5py.ExternalLink("other.h5", "x"))), "a link to another place"),
    (edit(lambda c: c.__setitem__("again", c["spikes"])), "also has another name"),
]


@pytest.mark.parametrize(("spoil", "words"), BROKEN_FILES, ids=[words for _, words in BROKEN_FILES])
def test_a_broken_file_is_one_sentence(spoil: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    write_set(tmp_path, "shd", 20)
    spoil(tmp_path / "shd_test.h5")
    with pytest.raises(ValueError, match=rf"shd_test.h5.*{words}") as error:
        loaded("shd", tmp_path, 2)
    assert "\n" not in str(error.value)


def test_a_file_that_does_not_name_its_words_has_numbered_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_sounds(tmp_path / f"shd_{part}.h5", [some_spikes(k) for k in range(20)], np.arange(20), None)
    assert shd(tmp_path).classes == tuple(map(str, range(20)))


def test_the_package_is_asked_for_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_set(tmp_path, "shd", 20)
    monkeypatch.setitem(sys.modules, "spikerate.system.hdf5", None)
    with pytest.raises(ValueError, match=r"pip install 'spikerate\[sounds\]'"):
        shd(tmp_path)


@pytest.mark.parametrize("wrong", [Data("shd", size=32), Data("ssc", augment=Augment(flip=True))])
def test_what_is_for_images_is_refused(wrong: Data) -> None:
    check(Data("shd", augment=Augment(mixup=0.5, repeats=2)))
    with pytest.raises(ValueError, match=f"are for images, and {wrong.name} has channels of sound"):
        check(wrong)


def test_predict_says_that_a_file_has_all_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a file of shd has all of them"):
        sample_files([tmp_path], Data("shd"))
