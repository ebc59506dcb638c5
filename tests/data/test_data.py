"""Data: the built-in set, CIFAR-10's files and their faults, augmentation and batches."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikerate.data import (
    SETS,
    Augment,
    Data,
    DataSet,
    Part,
    check,
    epoch_batches,
    input_shape,
    load,
    plain_batches,
    steps_per_epoch,
)
from spikerate.data.samples import Block, Stored, Units, divide
from spikerate.system.dist import Ranks
from support.images import FILES, truncate, write_cifar
from support.pickles import python2

CPU = torch.device("cpu")


def test_digits_are_all_there_and_their_split_is_fixed() -> None:
    data = load(Data("digits"), 1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1257, 180, 360]
    for part in (data.train, data.validation, data.test):
        counts = torch.bincount(part.labels, minlength=10)
        assert counts.min() > 0.9 * len(part) / 10
        (x,) = part.read([Block(torch.arange(len(part)))], CPU)
        assert x.dtype == torch.uint8
        assert x.max() == 255
    assert data.shape == input_shape(Data("digits")) == (1, 8, 8)
    assert len(data.classes) == SETS["digits"].num_classes
    assert "CC BY 4.0" in data.licence
    x = torch.cat([x for x, _ in plain_batches(data, data.train, 100, CPU)])
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01


def test_cifar10_in_its_official_layout(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    for path in (tmp_path, folder):
        data = load(Data("cifar10", path, validation=4), 1)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [26, 4, 6]
    assert data.shape == input_shape(Data("cifar10"))
    assert len(data.classes) == SETS["cifar10"].num_classes
    assert set(data.checksums) == set(FILES)
    batch = pickle.loads((folder / "test_batch").read_bytes())
    assert isinstance(data.test, Stored)
    assert np.array_equal(data.test.samples.flatten(1).numpy(), batch[b"data"])
    assert data.test.labels.tolist() == batch[b"labels"]


def test_cifar10_real_files(real_data: Callable[[str], Path]) -> None:
    data = load(Data("cifar10", real_data("cifar10"), validation=5000), 1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.classes[:3] == ("airplane", "automobile", "bird")


def test_cifar_is_read_as_python_2_and_python_3_wrote_it(tmp_path: Path) -> None:
    """The archives come from Python 2, which wrote the array type as a byte string; people write their own by Python 3."""
    names = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
    meta = {b"num_cases_per_batch": 10_000, b"label_names": names, b"num_vis": 3072}
    assert hashlib.md5(python2(meta)).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888", "the official file, byte for byte"
    folder = write_cifar(tmp_path)
    honest = {name: pickle.loads((folder / name).read_bytes()) for name in FILES}
    writers: list[Callable[[Any], bytes]] = [python2, lambda value: python2(value).replace(b"U\x02u1", b"U\x03|u1")]
    writers += [lambda value, protocol=protocol: pickle.dumps(value, protocol=protocol) for protocol in range(5)]  # type: ignore[misc]
    for write in writers:
        for name, batch in honest.items():
            (folder / name).write_bytes(write(meta if name == "batches.meta" else batch))
        data = load(Data("cifar10", folder), 1)
        assert data.classes == tuple(name.decode() for name in names)
        (x,) = data.test.read([Block(torch.arange(6))], CPU)
        assert np.array_equal(x.flatten(1).numpy(), honest["test_batch"][b"data"])
        assert data.test.labels.tolist() == honest["test_batch"][b"labels"]
    forged = python2(honest["test_batch"])
    for kind in (b"i1", b"O8", b"V1", b"u2"):
        (folder / "test_batch").write_bytes(forged.replace(b"U\x02u1", b"U\x02" + kind))
        with pytest.raises(ValueError, match=f"test_batch asks for the array type b'{kind.decode()}'"):
            load(Data("cifar10", folder), 1)


DEEP = b"(K\x01K\x02t" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(100))
"""Tuples of twice the tuple before: a few bytes, of which a hash or a text takes 2 ** 100 steps."""
LONG = b"X" + (2**16).to_bytes(4, "little") + b"a" * 2**16 + b"q\x00" + b"cnumpy\ndtype\nq\x01"
HOSTILE_PICKLES = {
    "keys of tuples": (b"\x80\x02}" + DEEP + b"K\x01s.", "a key that is no string"),
    "several keys of tuples": (b"\x80\x02}(" + DEEP + b"K\x01u.", "a key that is no string"),
    "keys of tuples in another dictionary": (b"\x80\x02(" + DEEP + b"K\x01d.", "a key that is no string"),
    "sets of tuples": (b"\x80\x04\x8f(" + DEEP + b"\x90.", "truncated or no pickle"),
    "labels of tuples": (
        python2({b"labels": [1, 2], b"data": np.zeros((2, 3072), np.uint8)}).replace(b"K\x01K\x02", b"K\x01" + DEEP, 1),
        r"has the label of a tuple at row 1",
    ),
    "array types of tuples": (b"\x80\x02cnumpy\ndtype\n" + DEEP + b"\x85R.", "the array type of a tuple"),
    "a text used again and again": (
        b"\x80\x02c_codecs\nencode\nq\x02" + LONG + b"(" + b"h\x02h\x00U\x06latin1\x86R" * 5000 + b"l.",
        "more bytes than it has",
    ),
    "another function's defaults": (
        b"\x80\x02cnumpy\ndtype\nN}U\x0c__defaults__N\x85s\x86b.",
        "another object than an array",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_PICKLES)
def test_a_few_hostile_bytes_take_neither_time_nor_memory(kind: str, tmp_path: Path) -> None:
    raw, words = HOSTILE_PICKLES[kind]
    folder = write_cifar(tmp_path)
    (folder / "data_batch_2").write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=words) as caught:
            load(Data("cifar10", folder), 1)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "data_batch_2" in str(caught.value)
    assert len(str(caught.value)) < 300


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def change(**entries: Any) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        batch = pickle.loads(file.read_bytes())
        file.write_bytes(pickle.dumps(batch | {k.encode(): v for k, v in entries.items()}, protocol=2))

    return apply


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "truncated or no pickle"),
    "empty": (lambda f: f.write_bytes(b""), "truncated or no pickle"),
    "foreign": (lambda f: f.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "truncated or no pickle"),
    "a list": (lambda f: f.write_bytes(pickle.dumps([1, 2])), "holds a list, not a dictionary"),
    "no data": (change(data=None), "has no array `data`"),
    "floats": (change(data=np.zeros((6, 3072))), "asks for the array type 'f8'"),
    "narrow": (change(data=np.zeros((6, 99), np.uint8)), "has no array `data`"),
    "objects": (change(data=np.array([[{}] * 3072] * 6, dtype=object)), "asks for the array type"),
    "fewer labels": (change(labels=[1, 2]), "has 6 images, but not as many labels"),
    "label 10": (change(labels=[0, 1, 10, 3, 4, 5]), "has the label 10 at row 2"),
    "label -1": (change(labels=[-1, 1, 1, 3, 4, 5]), "has the label -1 at row 0"),
    "label x": (change(labels=["x", 1, 1, 3, 4, 5]), "has the label 'x' at row 0"),
    "missing": (lambda f: f.unlink(), "is incomplete: data_batch_3 not there"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_named(fault: str, tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    damage, words = FAULTS[fault]
    damage(folder / "data_batch_3")
    with pytest.raises(ValueError, match=words) as caught:
        load(Data("cifar10", tmp_path), 1)
    assert "data_batch_3" in str(caught.value)


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Bomb(tmp_path / "boom")}))
    with pytest.raises(ValueError, match=r"data_batch_1 asks for (posix|nt).system"):
        load(Data("cifar10", tmp_path), 1)
    assert not (tmp_path / "boom").exists()


def test_a_forged_shape_takes_no_memory(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    honest = pickle.dumps({b"data": np.zeros((6, 3072), np.uint8)}, protocol=2)
    forged = honest.replace(b"K\x00\x85", b"J\xff\xff\xff\x7f\x85")  # _reconstruct(ndarray, (2147483647,), b"b")
    assert forged != honest
    (folder / "data_batch_1").write_bytes(forged)
    with pytest.raises(ValueError, match="data_batch_1"):
        load(Data("cifar10", tmp_path), 1)


@given(cut=st.integers(0, 2000), flip=st.integers(0, 2000), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_any_damage_is_a_sentence_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, bit: int
) -> None:
    folder = write_cifar(tmp_path_factory.mktemp("fuzz"), rows=1)
    file = folder / "data_batch_1"
    raw = bytearray(file.read_bytes())
    raw[flip % len(raw)] ^= 1 << bit
    file.write_bytes(bytes(raw[: len(raw) - cut] if cut < 1000 else raw))
    said = ""
    try:
        assert len(load(Data("cifar10", folder), 1).train) == 5
    except ValueError as error:
        said = str(error)
    assert not said or "data_batch_1" in said


def test_missing_folders_and_unknown_sets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --data PATH"):
        load(Data("cifar10"), 1)
    with pytest.raises(ValueError, match="does not exist"):
        load(Data("cifar10", tmp_path / "nowhere"), 1)
    with pytest.raises(ValueError, match="is incomplete"):
        load(Data("cifar10", tmp_path), 1)
    with pytest.raises(ValueError, match=r"data\.name is 'cifar11'"):
        load(Data("cifar11", tmp_path), 1)  # type: ignore[arg-type]
    folder = write_cifar(tmp_path)
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"one"]}))
    with pytest.raises(ValueError, match="no list of 10 label names"):
        load(Data("cifar10", tmp_path), 1)


def numbered(train: int, test: int) -> DataSet:
    """Images whose one pixel and label are their number."""

    def images(n: int) -> Stored:
        return Stored(torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1), torch.arange(n))

    return DataSet("numbered", images(train), images(0), images(test), ("a", "b"), Units((0.0,), (1.0,)), "", {})


def test_validation_and_test_samples_are_drawn_once_and_for_all() -> None:
    data = divide(numbered(50, 0), validation=12, test=5, subset=None)
    parts = [part.labels.tolist() for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [33, 12, 5]
    assert sorted(itertools.chain(*parts)) == list(range(50))
    assert (data.drawn["validation"], data.drawn["test"]) == (parts[1], parts[2])
    assert "12 validation of 50" in data.split
    assert "5 test of 50" in data.split
    again = divide(numbered(50, 0), 12, 5, None)
    assert again.drawn == data.drawn
    x = torch.cat([x for x, _ in plain_batches(data, data.validation, 5, CPU)])
    assert (x.flatten() * 255).round().long().tolist() == parts[1]
    whole = divide(numbered(50, 7), 0, 0, None)
    assert (len(whole.train), len(whole.validation), len(whole.test), whole.drawn) == (50, 0, 7, {})


def test_a_subset_cuts_all_parts_by_the_same_share() -> None:
    data = divide(numbered(100, 30), validation=20, test=0, subset=8)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 2, 3]
    assert not set(data.train.labels.tolist()) & set(data.validation.labels.tolist())
    assert "8 in 80" in data.split
    assert data.drawn["validation"] == data.validation.labels.tolist()


@pytest.mark.parametrize(
    ("sizes", "validation", "test", "subset", "words"),
    [
        ((50, 9), -1, 0, None, "data.validation is -1"),
        ((50, 9), 50, 0, None, "data.validation is 50: give a number from 0 to 49"),
        ((50, 9), 0, 5, None, "data.test is 5, but numbered has 9"),
        ((50, 0), 0, 0, None, "has no test samples of its own: give --data.test N"),
        ((50, 0), 30, 20, None, "take 50 of 50 samples"),
        ((50, 9), 10, 0, 41, "data.subset is 41: give a number from 1 to 40"),
    ],
)
def test_parts_that_can_not_be_drawn(sizes: tuple[int, int], validation: int, test: int, subset: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        divide(numbered(*sizes), validation, test, subset)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Data("digits", validation=3), "digits is built in"),
        (Data("digits-dvs", test=3), "digits-dvs is built in"),
        (Data("mnist", augment=Augment(autoaugment="cifar10")), "is for colour images, and mnist has none"),
        (Data("digits", augment=Augment(trivialaugment=True)), "trivialaugment is for colour images, and digits has none"),
        (Data("cifar10", augment=Augment(resized_crop=True)), "are for image files of any size, and cifar10 has none"),
        (Data("tiny-imagenet", decoded=True), "are for image files of any size, and tiny-imagenet has none"),
        (Data("n-mnist", decoded=True), "are for image files"),
        (Data("events"), "give --data.sensor HEIGHT WIDTH"),
        (Data("n-mnist", sensor=(34, 34)), "data.sensor is for --data.name events only"),
    ],
)
def test_settings_that_do_not_go_together(data: Data, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("validation", -1),
            ("test", -1),
            ("subset", 0),
            ("size", 4),
            ("workers", -1),
            ("sensor", (0, 3)),
            ("store", "disk"),
        ),
        *((name, 10**18) for name in ("validation", "test", "subset", "size", "workers")),
        *(("workers", 400), ("sensor", (34, 10**9))),
    ],
)
def test_settings_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"data.{field} is"):
        Data("cifar10", **{field: value})


def test_samples_are_resized_as_they_are_read() -> None:
    data = load(Data("digits", size=16), 1)
    assert data.shape == input_shape(Data("digits", size=16)) == (1, 16, 16)
    (part,) = next(epoch_batches(data, 40, Augment(), 0, 0))
    assert part.x.shape == (40, 1, 16, 16)
    on_device = data.to(CPU)
    assert torch.equal(next(epoch_batches(on_device, 40, Augment(), 0, 0))[0].x, part.x)
    large = next(x for x, _ in plain_batches(data, data.test, 9, CPU))
    plain = load(Data("digits"), 1)
    small = next(x for x, _ in plain_batches(plain, plain.test, 9, CPU))
    torch.testing.assert_close(large.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.15, rtol=0)


def test_digits_before_an_event_camera(tmp_path: Path) -> None:
    asked = Data("digits-dvs", cache=tmp_path)
    data, still = load(asked, 4), load(Data("digits"), 1)
    assert data.shape == input_shape(asked) == (2, 16, 16)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, part).labels, getattr(still, part).labels)
    x, _ = next(plain_batches(data, data.test, 50, CPU))
    assert x.shape == (50, 4, 2, 16, 16)
    assert torch.equal(x, x.round())
    events = x.sum((2, 3, 4))
    assert torch.equal(events[:, :3], events[:, :1].expand(-1, 3)), "equal numbers of events in each frame"
    assert ((events[:, 3] - events[:, 0]) >= 0).all()
    assert ((events[:, 3] - events[:, 0]) < 4).all()
    (part,) = next(epoch_batches(data, 30, Augment(flip=True, roll=2), 0, 0))
    assert part.x.shape == (30, 4, 2, 16, 16)
    assert part.x.sum() == next(epoch_batches(data, 30, Augment(), 0, 0))[0].x.sum()
    other = load(Data("digits-dvs", cache=tmp_path, frames="time"), 4)
    by_time, _ = next(plain_batches(other, other.test, 50, CPU))
    assert len(list(tmp_path.iterdir())) == 2, "one cache for each setting"
    assert not torch.equal(by_time, x)
    assert torch.equal(by_time.sum((1, 2, 3, 4)), events.sum(1))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = load(asked, 4)
    assert torch.equal(next(plain_batches(again, again.test, 50, CPU))[0], x)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before, "read, not made again"
    for rows in tmp_path.glob("*/rows"):
        raw = bytearray(rows.read_bytes())
        raw[len(raw) // 2] ^= 1
        rows.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="is damaged: remove it"):
        load(asked, 4)


def test_an_unwritable_cache_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"choose another place by --data\.cache"):
        load(Data("digits-dvs", cache=tmp_path / "file"), 4)


ALL = Augment(crop=4, flip=True, autoaugment="cifar10", cutout=16)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop=4),
        Augment(flip=True),
        Augment(autoaugment="cifar10"),
        Augment(randaugment=(3, 5)),
        Augment(trivialaugment=True),
        Augment(erasing=0.5),
        Augment(cutout=9),
        Augment(roll=5),
        Augment(rotation=30),
        Augment(roll=5, rotation=30, cutout=9, one_of=True),
        ALL,
    ],
)
def test_augmentation_is_a_function_of_batch_and_seed(augment: Augment) -> None:
    x = torch.rand(24, 3, 32, 32)
    before, state = x.clone(), torch.get_rng_state()
    a, b, c = augment(x, 1), augment(x, 1), augment(x, 2)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.shape == x.shape
    assert torch.equal(x, before), "the input stays as it is"
    assert torch.equal(state, torch.get_rng_state()), "the global generator stays as it is"
    assert a.min() >= -1e-6
    assert a.max() <= 1 + 1e-6


def test_no_augmentation_is_none() -> None:
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(Augment()(x, 1), x)


def test_a_roll_moves_everything_around_by_whole_pixels() -> None:
    x = torch.rand(50, 2, 9, 9)
    y = Augment(roll=3)(x, 0)
    moves = set()
    for before, after in zip(x, y, strict=True):
        found = [
            (down, right)
            for down in range(-3, 4)
            for right in range(-3, 4)
            if torch.equal(before.roll((down, right), (1, 2)), after)
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 20


def test_all_frames_of_a_sample_are_treated_alike() -> None:
    frame = torch.rand(16, 1, 2, 12, 12)
    for augment in (Augment(crop=2, flip=True, roll=4, rotation=30, cutout=5), Augment(roll=2, cutout=3, one_of=True)):
        x = augment(frame.expand(16, 5, 2, 12, 12).clone(), 7)
        assert x.shape == (16, 5, 2, 12, 12)
        assert torch.equal(x, x[:, :1].expand_as(x))
        assert not torch.equal(x[:, :1], frame)


def test_one_of_gives_each_group_one_change() -> None:
    x = torch.rand(80, 1, 10, 10) + 0.1
    y = Augment(roll=4, cutout=5, one_of=True)(x, 0)
    for before, after in zip(x.split(8), y.split(8), strict=True):
        was_cut = bool((after == 0).any())
        assert was_cut != bool(torch.isclose(before.sum(), after.sum()))


def test_cutout_is_a_square_clipped_at_the_border() -> None:
    x = Augment(cutout=6)(torch.ones(200, 3, 16, 16), 0)
    gone = (x == 0).all(1)
    assert torch.equal(gone, (x == 0).any(1))
    areas = {int(a) for a in gone.sum((1, 2))}
    assert max(areas) == 36
    assert min(areas) >= 9
    for one in gone:
        rows, columns = one.any(1), one.any(0)
        assert int(rows.sum()) * int(columns.sum()) == int(one.sum())


def test_groups_of_a_batch_draw_their_own_sub_policy() -> None:
    image = torch.rand(1, 3, 32, 32)
    x = Augment(autoaugment="cifar10")(image.repeat(64, 1, 1, 1), 3)
    changed = (x - image).abs().flatten(1).amax(1) > 1e-4
    groups = changed.view(8, 8).float().mean(1)
    assert len({round(float(g), 2) for g in groups}) > 1


def test_augmentation_out_of_range() -> None:
    for field in ("crop", "cutout", "roll", "rotation"):
        for value in (-1, 10**9, 10**18, float("nan")):
            with pytest.raises(ValueError, match=f"augment.{field} is {value}"):
                Augment(**{field: value})  # type: ignore[arg-type]
    for data in (Data("cifar10", augment=Augment(crop=33)), Data("cifar10", size=16, augment=Augment(crop=17))):
        with pytest.raises(
            ValueError, match=r"data\.augment\.crop is \d+, wider than the samples: give at most (16|32) pixels"
        ):
            check(data)
    x = Augment(crop=8, cutout=4096, roll=4096, rotation=180)(torch.rand(3, 1, 8, 8), 0)
    assert x.shape == (3, 1, 8, 8)
    with pytest.raises(ValueError, match="at least two of them"):
        Augment(roll=3, one_of=True)


def test_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    data = load(Data("digits"), 1)

    def epoch(*key: int) -> list[torch.Tensor]:
        return [part.x for (part,) in epoch_batches(data, 100, Augment(crop=1), *key)]

    first = epoch(0, 3)
    torch.rand(7)
    assert len(first) == steps_per_epoch(data.train, 100) == 12
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0, 3), strict=True))
    for other in ((0, 4), (1, 3)):
        assert not torch.equal(first[0], epoch(*other)[0])
    later = [part.x for (part,) in epoch_batches(data, 100, Augment(crop=1), 0, 3, start=5)]
    assert all(torch.equal(a, b) for a, b in zip(first[5:], later, strict=True))


@given(ranks=st.integers(1, 5), parts=st.integers(1, 3), batch=st.integers(30, 150))
@settings(max_examples=15, deadline=None)
def test_ranks_and_parts_change_nothing_of_a_batch(ranks: int, parts: int, batch: int) -> None:
    """Neither its images, nor their order, nor their augmentation."""
    data = load(Data("digits"), 1)

    def first(share: Any = slice, parts: int = 1) -> list[Part]:
        return next(epoch_batches(data, batch, Augment(crop=2, cutout=3), 5, 2, share, parts))

    (whole,) = first()
    divided = [first(Ranks(rank, ranks).share, parts) for rank in range(ranks)]
    assert torch.equal(torch.cat([rank[p].x for p in range(parts) for rank in divided]), whole.x)
    for rank in divided:
        assert torch.equal(torch.cat([part.labels for part in rank]), whole.labels)


def test_batches_are_floats() -> None:
    data = load(Data("digits"), 1)
    x, y = next(iter(plain_batches(data, data.test, 7, CPU)))
    assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (7, 1, 8, 8))
    assert steps_per_epoch(data.test, 1000) == 1
