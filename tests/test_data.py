"""Data: the built-in set, CIFAR-10's files and their faults, augmentation and batches."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikerate.data import SHAPES, Augment, Part, epoch_batches, load, plain_batches, steps_per_epoch
from spikerate.data.batches import to_float
from spikerate.data.images import Images, hold_out
from spikerate.dist import Ranks

CPU = torch.device("cpu")
FILES = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]


def write_cifar(folder: Path, rows: int = 6) -> Path:
    """A small CIFAR-10 in the official layout."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in FILES[:-1]:
        data = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": rng.integers(0, 10, rows).tolist(), b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [f"class{k}".encode() for k in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return folder


def test_digits_are_all_there_and_their_split_is_fixed() -> None:
    data = load("digits", None, 0)
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [1257, 180, 360]
    for part in (data.train, data.held_out, data.test):
        counts = torch.bincount(part.labels, minlength=10)
        assert counts.min() > 0.9 * len(part) / 10
        assert part.images.dtype == torch.uint8
        assert part.images.max() == 255
    assert (data.shape, len(data.classes)) == SHAPES["digits"]
    assert "CC BY 4.0" in data.licence
    x = torch.cat([x for x, _ in plain_batches(data, data.train, 100, CPU)])
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01


def test_cifar10_in_its_official_layout(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    for path in (tmp_path, folder):
        data = load("cifar10", path, 4)
        assert [len(part) for part in (data.train, data.held_out, data.test)] == [26, 4, 6]
    assert (data.shape, len(data.classes)) == SHAPES["cifar10"]
    assert set(data.checksums) == set(FILES)
    batch = pickle.loads((folder / "test_batch").read_bytes())
    assert np.array_equal(data.test.images.flatten(1).numpy(), batch[b"data"])
    assert data.test.labels.tolist() == batch[b"labels"]


def test_cifar10_real_files(cifar10_folder: Path) -> None:
    data = load("cifar10", cifar10_folder, 5000)
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [45_000, 5_000, 10_000]
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.classes[:3] == ("airplane", "automobile", "bird")


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


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "truncated or no pickle"),
    "empty": (lambda f: f.write_bytes(b""), "truncated or no pickle"),
    "foreign": (lambda f: f.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "truncated or no pickle"),
    "a list": (lambda f: f.write_bytes(pickle.dumps([1, 2])), "holds a list, not a dictionary"),
    "no data": (change(data=None), "has no array `data`"),
    "floats": (change(data=np.zeros((6, 3072))), "asks for the array type f8"),
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
        load("cifar10", tmp_path, 0)
    assert "data_batch_3" in str(caught.value)


def test_a_pickle_bomb_does_not_go_off(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Bomb(tmp_path / "boom")}))
    with pytest.raises(ValueError, match=r"data_batch_1 asks for (posix|nt).system"):
        load("cifar10", tmp_path, 0)
    assert not (tmp_path / "boom").exists()


def test_a_forged_shape_takes_no_memory(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    honest = pickle.dumps({b"data": np.zeros((6, 3072), np.uint8)}, protocol=2)
    forged = honest.replace(b"K\x00\x85", b"J\xff\xff\xff\x7f\x85")  # _reconstruct(ndarray, (2147483647,), b"b")
    assert forged != honest
    (folder / "data_batch_1").write_bytes(forged)
    with pytest.raises(ValueError, match="data_batch_1"):
        load("cifar10", tmp_path, 0)


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
        assert load("cifar10", folder, 0).train.images.shape == (5, 3, 32, 32)
    except ValueError as error:
        said = str(error)
    assert not said or "data_batch_1" in said


def test_missing_folders_and_unknown_sets(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give --data PATH"):
        load("cifar10", None, 0)
    with pytest.raises(ValueError, match="does not exist"):
        load("cifar10", tmp_path / "nowhere", 0)
    with pytest.raises(ValueError, match="is incomplete"):
        load("cifar10", tmp_path, 0)
    with pytest.raises(ValueError, match="there is no data set 'cifar11'"):
        load("cifar11", None, 0)
    folder = write_cifar(tmp_path)
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"one"]}))
    with pytest.raises(ValueError, match="no list of ten label names"):
        load("cifar10", tmp_path, 0)


def test_held_out_images_come_from_the_training_set_once_and_for_all() -> None:
    images = Images(torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1), torch.arange(50))
    rest, kept, how = hold_out(images, 12)
    assert sorted([*rest.labels.tolist(), *kept.labels.tolist()]) == list(range(50))
    assert torch.equal(kept.labels, hold_out(images, 12)[1].labels)
    assert "12 of 50" in how
    assert len(hold_out(images, 0)[1]) == 0
    for n in (-1, 50):
        with pytest.raises(ValueError, match=f"data.held_out is {n}"):
            hold_out(images, n)


ALL = Augment(crop=4, flip=True, autoaugment="cifar10", cutout=16)


@pytest.mark.parametrize(
    "augment", [Augment(crop=4), Augment(flip=True), Augment(autoaugment="cifar10"), Augment(cutout=9), ALL]
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
    for field in ("crop", "cutout"):
        with pytest.raises(ValueError, match=f"augment.{field} is -1"):
            Augment(**{field: -1})


def test_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    data = load("digits", None, 0)

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
    data = load("digits", None, 0)

    def first(share: Any = slice, parts: int = 1) -> list[Part]:
        return next(epoch_batches(data, batch, Augment(crop=2, cutout=3), 5, 2, share, parts))

    (whole,) = first()
    divided = [first(Ranks(rank, ranks).share, parts) for rank in range(ranks)]
    assert torch.equal(torch.cat([rank[p].x for p in range(parts) for rank in divided]), whole.x)
    for rank in divided:
        assert torch.equal(torch.cat([part.labels for part in rank]), whole.labels)


def test_batches_are_channels_last_floats() -> None:
    data = load("digits", None, 0)
    x, y = next(iter(plain_batches(data, data.test, 7, CPU)))
    assert (x.dtype, y.dtype, x.shape) == (torch.float32, torch.int64, (7, 1, 8, 8))
    assert to_float(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)
    assert steps_per_epoch(data.test, 1000) == 1
