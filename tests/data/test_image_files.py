"""Image files: the official layouts and class folders, their faults, how an image is decoded, and the cache."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spikerate.data import Augment, Data, DataSet, epoch_batches, load, plain_batches, sample_files
from spikerate.data import cifar as cifar_module
from spikerate.data import idx as idx_module
from spikerate.data import image_files as image_files_module
from spikerate.data.class_folders import Listing, list_classes
from spikerate.data.decode import SUFFIXES, _random_box, decode
from spikerate.data.samples import Block, Samples, Stored
from spikerate.runs.experiment import data_card
from support.images import LAYOUTS, ROWS, colour, write_folder, write_set

CPU = torch.device("cpu")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def read_all(samples: Samples) -> np.ndarray:
    (x,) = samples.read([Block(torch.arange(len(samples)))], CPU)
    return x.numpy()


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_official_layout_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    images, labels = write_set(tmp_path, name)
    for path in (tmp_path, tmp_path / name):
        data = load(Data(layout.set, path), 1)  # type: ignore[arg-type]
        assert np.array_equal(np.concatenate([read_all(data.train), read_all(data.test)]), images)
        assert torch.cat([data.train.labels, data.test.labels]).tolist() == labels.tolist()
        assert (len(data.test), len(data.validation), len(data.classes)) == (ROWS, 0, layout.classes)
        assert data.shape == layout.shape
        assert layout.victim.removesuffix(".gz") in data.checksums
    if layout.module is cifar_module:
        assert data.classes[7] == "class7"


def test_idx_files_as_unpackers_and_browsers_name_them(tmp_path: Path) -> None:
    """The dot is in the name that the official .gz holds within; the browser unpacks, but leaves the suffix."""
    for name in ("mnist", "fashion-mnist"):
        images, _ = write_set(tmp_path, name)
        plain = load(Data(name, tmp_path), 1)  # type: ignore[arg-type]
        for file in list((tmp_path / name).iterdir()):
            raw = unpacked(file)
            file.unlink()
            file.with_name(file.name.replace("-idx", ".idx") if name == "mnist" else file.name).write_bytes(raw)
        again = load(Data(name, tmp_path), 1)  # type: ignore[arg-type]
        assert np.array_equal(np.concatenate([read_all(again.train), read_all(again.test)]), images)
        assert again.checksums == plain.checksums


def shuffled(raw: bytes) -> bytes:
    return np.random.default_rng(0).permutation(np.frombuffer(raw, np.uint8)).tobytes()


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda raw: raw[:-5],
    "cut in the middle": lambda raw: raw[: len(raw) // 2 + 1],
    "one byte": lambda raw: raw[:1],
    "shuffled": shuffled,
    "empty": lambda raw: b"",
    "reversed": lambda raw: raw[::-1],
    "foreign": lambda raw: PNG,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_damaged_file_is_named(name: str, fault: str, tmp_path: Path) -> None:
    write_set(tmp_path, name)
    file = tmp_path / name / LAYOUTS[name].victim
    file.write_bytes(FAULTS[fault](file.read_bytes()))
    expect_named(name, tmp_path, file.name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_that_is_larger_than_any_official_one_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, name)
    file = tmp_path / name / LAYOUTS[name].victim
    largest = max(len(unpacked(f)) for f in file.parent.iterdir())
    monkeypatch.setattr(LAYOUTS[name].module, "_LARGEST", largest)
    load(Data(LAYOUTS[name].set, tmp_path), 1)  # type: ignore[arg-type]
    raw = unpacked(file) + bytes(largest)
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)
    assert "fetch it again" in expect_named(name, tmp_path, file.name)


def unpacked(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    write_set(tmp_path, name)
    file = tmp_path / name / LAYOUTS[name].victim
    file.unlink()
    expect_named(name, tmp_path, file.name.removesuffix(".gz"))
    file.mkdir()
    expect_named(name, tmp_path, file.name.removesuffix(".gz"))


def expect_named(name: str, path: Path, file: str) -> str:
    with pytest.raises(ValueError, match=file) as caught:
        load(Data(LAYOUTS[name].set, path), 1)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_label_out_of_range_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    images, labels = write_set(tmp_path, name)
    labels[:] = layout.classes - 1
    labels[4] = layout.classes
    layout.write(tmp_path / name, layout.train[0], images[:ROWS], labels[:ROWS])
    said = expect_named(name, tmp_path, layout.train[0])
    row = 3072 + 1 + (layout.classes == 100)
    place = "row 4" if name.endswith(("py", "python")) else "byte 12" if "mnist" in name else f"byte {5 * row - 3073:,}"
    assert f"has the label {layout.classes} at {place}:" in said


@pytest.mark.parametrize("part", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_with_other_headers(name: str, part: str, tmp_path: Path) -> None:
    suffix = ".gz" if name == "fashion-mnist" else ""
    file = tmp_path / name / f"train-{part}-ubyte{suffix}"
    dims = 3 if "images" in part else 1

    def said(change: Callable[[bytes], bytes]) -> str:
        file.parent.mkdir(exist_ok=True)
        file.parent.rename(tmp_path / "old")
        write_set(tmp_path, name)
        raw = change(unpacked(file))
        file.write_bytes(gzip.compress(raw) if suffix else raw)
        with pytest.raises(ValueError, match=file.name) as caught:
            load(Data(name, tmp_path), 1)  # type: ignore[arg-type]
        for old in (tmp_path / "old").iterdir():
            old.unlink()
        (tmp_path / "old").rmdir()
        return str(caught.value)

    end = 4 + 4 * dims
    assert "little-endian" in said(lambda r: np.frombuffer(r[:end], ">u4").astype("<u4").tobytes() + r[end:])
    assert "does not begin with" in said(lambda r: b"\0\0\x0d" + r[3:])  # floats
    assert "does not begin with" in said(lambda r: r[:3] + bytes([4 - dims]) + r[4:])  # the other of the two files
    assert "says at byte 4" in said(lambda r: r[:4] + b"\xff" * (end - 4) + r[end:])  # a forged size takes no memory
    assert "says at byte 4" in said(lambda r: r + b"\0")
    assert "labels" in said(lambda r: r[:4] + bytes(4) + r[8:end])  # no rows
    if dims == 3:
        assert "images of 14 x 56" in said(lambda r: r[:8] + bytes([0, 0, 0, 14, 0, 0, 0, 56]) + r[end:])


def test_a_packed_file_that_is_a_bomb_is_not_unpacked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "fashion-mnist")
    monkeypatch.setattr(idx_module, "_LARGEST", 10_000)
    file = tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(gzip.compress(bytes(5_000_000)))
    assert "more than 10,000 bytes" in expect_named("fashion-mnist", tmp_path, file.name)


def test_a_forged_size_in_a_pickle_takes_no_memory(tmp_path: Path) -> None:
    """Of its table of objects (LONG_BINPUT), which is made as long as its largest number, and of its bytes."""
    write_set(tmp_path, "cifar-100-python")
    size = (2**24).to_bytes(8, "little")
    for forged in (b"\x80\x02}r" + size[:4] + b".", b"\x80\x05\x96" + size + b".", b"\x80\x04\x8e" + size + b"."):
        (tmp_path / "cifar-100-python" / "test").write_bytes(forged)
        tracemalloc.start()
        try:
            expect_named("cifar-100-python", tmp_path, "test")
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intact")
    for name in LAYOUTS:
        write_set(path, name)
    return path


MUTATIONS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)


def mutated(raw: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    """Bytes overwritten, most of them in the header, and in half of the cases an end cut off."""
    out = bytearray(raw)
    for k, (place, value) in enumerate(changes):
        out[place % (len(out) if k % 3 == 2 else min(len(out), 200))] = value
    return bytes(out[: len(out) - cut % len(out)] if cut > 500 else out)


def harmless(read: Callable[[], object], file: str) -> None:
    said = file
    try:
        read()
    except ValueError as error:
        said = str(error)
    assert file in said


@pytest.mark.parametrize("name", LAYOUTS)
@given(changes=MUTATIONS, cut=st.integers(0, 1000), random=st.binary(max_size=300), keep=st.booleans())
@settings(max_examples=50, deadline=None)
def test_any_damage_of_a_file_is_a_sentence_or_harmless(
    name: str, intact: Path, changes: list[tuple[int, int]], cut: int, random: bytes, keep: bool
) -> None:
    layout = LAYOUTS[name]
    file = intact / name / layout.victim
    raw = file.read_bytes()
    try:
        file.write_bytes(mutated(raw, changes, cut) if keep else random)
        harmless(lambda: load(Data(layout.set, intact / name), 1), file.name.split("-")[0])  # type: ignore[arg-type]
    finally:
        file.write_bytes(raw)


# class folders


def images(path: Path, **settings: Any) -> DataSet:
    return load(Data("images", path, **{"size": 16, "workers": 0, "cache": path.parent / "cache"} | settings), 1)


def mean_colours(samples: Samples) -> list[list[int]]:
    return [[round(float(c)) for c in x] for x in read_all(samples).mean((2, 3))]


def test_class_folders_are_listed_in_order(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "train" / "c1" / "deeper").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "c1" / "deeper" / "x.JPEG", "JPEG")
    for ignored in ("readme.txt", ".hidden.png", "._0.png"):
        (tmp_path / "train" / "c1" / ignored).write_bytes(b"no image")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("not a class")
    found = listed(tmp_path)
    assert found.classes == ("c0", "c1", "c2")
    assert [label for _, label in found.train] == [0] * 4 + [1] * 5 + [2] * 4
    assert [label for _, label in found.test] == [0, 0, 1, 1, 2, 2]
    assert [file.name for file, label in found.train if label == 1] == ["0.png", "1.png", "2.png", "3.png", "x.JPEG"]
    flat = listed(tmp_path / "train")
    assert (flat.train, flat.test, flat.classes) == (found.train, (), found.classes)
    counted = "files beside the class folders (1), files of .txt (1), folders .cache (1), hidden files (2); images are"
    assert found.notes[1].startswith(f"not read in {tmp_path}: {counted}")


SPLITS: dict[str, tuple[tuple[str, ...], tuple[str, str | None, str | None], str | None]] = {
    # folders -> which of them are train, validation and test; and a note that begins so, after the path
    "train val": (("train", "val"), ("train", None, "val"), "/val is the test set, as there is no folder test"),
    "train validation": (("train", "validation"), ("train", None, "validation"), "/validation is the test set"),
    "train test": (("train", "test"), ("train", None, "test"), None),
    "train valid test": (("train", "valid", "test"), ("train", "valid", "test"), None),
    "train dev testing": (("train", "dev", "testing"), ("train", "dev", "testing"), None),
    "Training Testing": (("Training", "Testing"), ("Training", None, "Testing"), None),
    "TRAIN VALIDATION TEST": (("TRAIN", "VALIDATION", "TEST"), ("TRAIN", "VALIDATION", "TEST"), None),
    "train val test and others": (
        ("train", "val", "test", "extra", "__MACOSX"),
        ("train", "val", "test"),
        ": the folders __MACOSX, extra;",
    ),
    "train alone": (("train",), ("train", None, None), None),
}


@pytest.mark.parametrize("layout", SPLITS)
def test_the_parts_are_the_folders_that_a_user_made(layout: str, tmp_path: Path) -> None:
    """Images and recordings alike; each part has its own number of files of a class."""
    folders, (train, validation, test), note = SPLITS[layout]
    for n, part in enumerate(folders, 1):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            for k in range(n):
                (tmp_path / part / label / f"{k}.png").touch()
    found = listed(tmp_path)
    for entries, name in ((found.train, train), (found.validation, validation), (found.test, test)):
        assert [label for _, label in entries] == (
            [0] * (folders.index(name) + 1) + [1] * (folders.index(name) + 1) if name else []
        )
        assert {file.parts[-3] for file, _ in entries} == ({name} if name else set())
    assert [name for name in folders if f"the folder {name}" in found.split] == [
        n for n in folders if n in (train, validation, test)
    ]
    assert len(found.notes) == (note is not None)
    assert note is None or note in found.notes[0]


def test_a_validation_set_of_ones_own_chooses_the_best_epoch(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    (path / "val").rename(path / "test")
    write_folder(tmp_path / "other", n=6)
    (tmp_path / "other" / "val").rename(path / "valid")
    for decoded in (False, True):
        data = images(path, decoded=decoded)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 9, 6]
        assert mean_colours(data.validation) == [list(colour("val", label, k)) for label in range(3) for k in range(3)]
        assert "validation samples are those of the folder valid" in data.split
        assert data.drawn == {}
    with pytest.raises(ValueError, match="validation is 2, but images has 9 validation samples of its own"):
        images(path, validation=2)
    few = images(path, subset=4)
    assert [len(part) for part in (few.train, few.validation, few.test)] == [4, 3, 2]
    for file in (path / "valid").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no readable file to choose the best epoch by: .*valid/c0/0\.png"):
        images(path, broken="skip")


def test_the_validation_set_of_imagenet_is_its_test_set(tmp_path: Path) -> None:
    """The benchmark's own test set has no labels: a folder of images without classes."""
    write_folder(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").touch()
    found = list_classes(tmp_path, SUFFIXES, "images", validation_is_test=True)
    assert (len(found.train), len(found.validation), len(found.test)) == (12, 0, 6)
    assert "the test set of this benchmark is its validation set" in found.notes[0]
    remove(tmp_path / "val/c0"), remove(tmp_path / "val/c1"), remove(tmp_path / "val/c2")
    for k in range(3):
        (tmp_path / "val" / f"ILSVRC2012_val_0000000{k}.JPEG").touch()
    with pytest.raises(ValueError, match="val has 0 class folders and 3 files beside them"):
        list_classes(tmp_path, SUFFIXES, "images", validation_is_test=True)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "bus", "car"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    assert listed(tmp_path).classes == ("bus", "car", "train")


def test_what_is_not_read_is_counted_by_its_kind(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    inside = path / "train" / "c1"
    for name in ("a.HEIC", "b.heic", "notes.txt", "README", ".DS_Store", "Thumbs.db"):
        (inside / name).write_bytes(b"no image")
    for folder in ("__MACOSX", ".ipynb_checkpoints"):
        (inside / folder).mkdir()
        shutil.copy(inside / "0.png", inside / folder / "0-checkpoint.png")
    (inside / "elsewhere").symlink_to(path / "val" / "c1")
    data = images(path)
    assert len(data.train) == 12
    counted = (
        "files of .db (1), files of .heic (2), files of .txt (1), files without a suffix (1), "
        "folders .ipynb_checkpoints (1), folders __MACOSX (1), hidden files (1), links to folders (1); "
        "images are files that end in .bmp, .gif, "
    )
    assert any(f"not read in {path}: {counted}" in note for note in data.notes)
    assert data_card(data)["notes"] == list(data.notes)
    files, notes = sample_files([inside], Data("images"))
    assert [file.name for file in files] == ["0.png", "1.png", "2.png", "3.png"]
    assert notes == [f"not read in {inside}: {counted.split(';')[0]}"]


def test_a_folder_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    """It is so deep that its path is too long for the system; one without permission is the same to the reader."""
    path = write_folder(tmp_path / "set")
    place = os.open(path / "train" / "c1", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=place)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    try:
        with pytest.raises(ValueError, match=r"the folder .*c1/ddd.* can't be read \(File name too long\)"):
            images(path)
        with pytest.raises(ValueError, match="can't be read"):
            sample_files([path], Data("images"))
    finally:
        shutil.rmtree(path / "train" / "c1")


def listed(path: Path) -> Listing:
    return list_classes(path, SUFFIXES, "images")


def test_images_have_the_labels_of_their_folders(tmp_path: Path) -> None:
    data = images(write_folder(tmp_path / "set"))
    assert data.shape == (3, 16, 16)
    assert mean_colours(data.train) == [list(colour("train", label, k)) for label in range(3) for k in range(4)]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert mean_colours(data.test) == [list(colour("val", label, k)) for label in range(3) for k in range(2)]
    x, y = next(plain_batches(data, data.test, 99, CPU))
    expected = (torch.tensor(colour("val", 2, 1)) / 255 - torch.tensor(data.units.mean)) / torch.tensor(data.units.std)
    torch.testing.assert_close(x[5].mean((1, 2)), expected)
    assert y.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_set_without_a_test_draws_one(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set") / "train"
    with pytest.raises(ValueError, match=r"give --data\.test N"):
        images(path)
    data = images(path, test=3, validation=2)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [7, 2, 3]
    for part in (data.train, data.validation, data.test):
        assert [green // 20 for _, green, _ in mean_colours(part)] == part.labels.tolist()


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing in val": (lambda p: remove(p / "val/c1"), "the class c1 is in .*train only"),
    "missing in train": (lambda p: remove(p / "train/c2"), "the class c2 is in .*val only"),
    "no images": (lambda p: (p / "train/c3").mkdir(), "the class c3 has no images in .*c3"),
    "other files": (lambda p: [f.rename(f.with_suffix(".heic")) for f in (p / "val/c0").iterdir()], "c0 has no images"),
    "one class": (lambda p: [remove(p / "train" / c) for c in ("c0", "c1")], "train has 1 class folders"),
    "no train": (lambda p: (p / "train").rename(p / "main"), "none named train"),
    "link to nowhere": (lambda p: (p / "val/c1/9.png").symlink_to(p / "nowhere.png"), "9.png"),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_faulty_folder_is_named(fault: str, tmp_path: Path) -> None:
    damage, words = FOLDER_FAULTS[fault]
    damage(write_folder(tmp_path / "set"))
    with pytest.raises(ValueError, match=words):
        read_all(images(tmp_path / "set").test)


def test_a_file_name_that_is_no_text_is_fine(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    name = path / "train" / "c0" / os.fsdecode(b"\xff\xfe.png")
    (path / "train" / "c0" / "0.png").rename(name)
    data = images(path)
    assert mean_colours(data.train[:4])[3] == list(colour("train", 0, 0))
    name.write_bytes(b"")
    with pytest.raises(ValueError, match="can't be decoded"):
        read_all(images(path).train)
    assert len(images(path, broken="skip").train) == 11


def test_an_empty_folder_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 0 class folders"):
        images(tmp_path)
    write_folder(tmp_path / "set")
    with pytest.raises(ValueError, match="has 3 classes, and imagenet 1000"):
        load(Data("imagenet", tmp_path / "set", workers=0), 1)


IMAGE_FAULTS: dict[str, Callable[[bytes], bytes]] = FAULTS | {
    "truncated": lambda raw: raw[:-40],
    "text": lambda raw: b"This is no image.",
    "forged size": lambda raw: raw[:16] + b"\x00\xff\xff\xff" * 2 + raw[24:],
    "PostScript": lambda raw: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n",
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_a_broken_image_stops_or_is_left_out(fault: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    file = path / "train" / "c1" / "2.png"
    file.write_bytes(IMAGE_FAULTS[fault](file.read_bytes()))

    at_reading = images(path)
    with pytest.raises(ValueError, match=str(file)):
        list(plain_batches(at_reading, at_reading.train, 5, CPU))
    with pytest.raises(ValueError, match=str(file)):
        list(epoch_batches(at_reading, 12, Augment(resized_crop=True), 0, 0))
    with pytest.raises(ValueError, match=f"{file}.*; --data.broken skip leaves such files out"):
        images(path, decoded=True)

    for decoded in (False, True):
        data = images(path, broken="skip", decoded=decoded)
        assert len(data.skipped) == 1 and str(file) in data.skipped[0]
        expected = [list(colour("train", label, k)) for label in range(3) for k in range(4) if (label, k) != (1, 2)]
        assert mean_colours(data.train) == expected
        assert data.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
        assert mean_colours(data.test)[5] == list(colour("val", 2, 1))
    with pytest.raises(ValueError, match=r"--data\.broken skip"):
        images(path, decoded=True)  # though there is a cache without it


def test_a_set_of_broken_images_says_so(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    for file in (path / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="set") as caught:
        images(path, broken="skip")
    assert "data.validation is 0" not in str(caught.value)


def test_a_link_counts_as_its_file(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    (path / "train" / "c2").rename(tmp_path / "elsewhere")
    (path / "train" / "c2").symlink_to(tmp_path / "elsewhere")
    assert len(images(path).train) == 12


# decoding


def scene(width: int, height: int) -> Image.Image:
    """Smooth, and different in every corner."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = [255 * x, 255 * y, 127 + 120 * np.sin(9 * x + 5 * y * y)]
    return Image.fromarray(np.stack(planes, -1).round().astype(np.uint8))


STORED = {  # EXIF orientation -> what becomes of the upright picture when it is stored so
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(file: Path, upright: Image.Image, **options: Any) -> Iterator[int]:
    """Store the picture in each orientation, one after the other."""
    for orientation, turn in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        upright.transpose(turn).save(file, exif=exif, **options)
        yield orientation


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_every_orientation_gives_the_same_upright_picture(suffix: str, tmp_path: Path) -> None:
    upright = scene(90, 60)
    file = tmp_path / f"x.{suffix}"
    options: dict[str, Any] = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    near = 3 if suffix == "jpg" else 0
    upright.save(file, **options)
    expected = decode(file, 32, None, 1.1).astype(int)
    for orientation in turned(file, upright, **options):
        difference = np.abs(decode(file, 32, None, 1.1) - expected)
        # a resampled mirror image may round its halves the other way
        assert difference.max() <= near + 1 and difference.mean() < 0.02 + near, orientation


def test_every_orientation_of_a_large_jpeg_is_cut_at_the_same_place(tmp_path: Path) -> None:
    """Its sides are no multiple of 8, so what is left of them at a reduced size is rounded up at one end."""
    x, y = np.meshgrid(np.linspace(0, 1, 601), np.linspace(0, 1, 801))
    waves = [127 + 120 * np.sin(40 * x), 127 + 120 * np.sin(40 * y), 255 * x]
    upright = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    expected = np.asarray(upright.resize((48, 48), Image.Resampling.BILINEAR, (0, 100, 601, 701))).transpose(2, 0, 1)
    for orientation in turned(tmp_path / "x.jpg", upright, quality=95):
        difference = np.abs(decode(tmp_path / "x.jpg", 48, None, 1).astype(int) - expected)
        assert difference.mean() < 1, orientation


def test_the_middle_of_a_gradient(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))).save(file)
    x = decode(file, 224, None, 256 / 224)
    assert x.shape == (3, 224, 224)
    assert (x == np.arange(16, 240)).all()
    wide = np.tile(np.arange(400) // 2, (256, 1)).astype(np.uint8)
    Image.fromarray(wide).save(file)
    assert (decode(file, 256, None, 1) == np.arange(72, 328) // 2).all()
    Image.fromarray(wide.T).save(file)
    assert (decode(file, 256, None, 1) == (np.arange(72, 328) // 2)[:, None]).all()


def test_a_margin_of_one_keeps_the_whole_short_side(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    framed = np.zeros((64, 100), np.uint8)
    framed[[0, -1]] = 255
    Image.fromarray(framed).save(file)
    whole = decode(file, 64, None, 1)
    assert (whole[:, [0, -1]] == 255).all() and (whole[:, 1:-1] == 0).all()
    assert (decode(file, 64, None, 256 / 224) == 0).all()
    Image.fromarray(framed.T).save(file)
    whole = decode(file, 64, None, 1)
    assert (whole[:, :, [0, -1]] == 255).all() and (whole[:, :, 1:-1] == 0).all()


def rgba() -> Image.Image:
    image = Image.new("RGBA", (20, 20), (250, 100, 50, 255))
    image.paste((250, 100, 50, 0), (0, 0, 10, 20))
    return image


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([9, 9, 9, 250, 100, 50])
    image.paste(0, (0, 0, 10, 20))
    if transparent:
        image.info["transparency"] = 0
    return image


MODES: dict[str, tuple[Callable[[], Image.Image], str, tuple[int, int, int], tuple[int, int, int]]] = {
    "grey": (lambda: Image.new("L", (20, 20), 77), "png", (77, 77, 77), (77, 77, 77)),
    "grey JPEG": (lambda: Image.new("L", (20, 20), 77), "jpg", (77, 77, 77), (77, 77, 77)),
    "black and white": (lambda: Image.new("1", (20, 20), 1), "png", (255, 255, 255), (255, 255, 255)),
    "palette": (lambda: palette(False), "png", (9, 9, 9), (250, 100, 50)),
    "transparent palette": (lambda: palette(True), "png", (0, 0, 0), (250, 100, 50)),
    "RGBA": (rgba, "png", (0, 0, 0), (250, 100, 50)),
    "RGBA WebP": (rgba, "webp", (0, 0, 0), (250, 100, 50)),
    "half transparent": (lambda: Image.new("LA", (20, 20), (200, 128)), "png", (100, 100, 100), (100, 100, 100)),
    "CMYK JPEG": (lambda: Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "jpg", (255, 0, 0), (255, 0, 0)),
    "16 bits": (
        lambda: Image.fromarray(np.full((20, 20), 40_000, np.uint16)),
        *("png", (156, 156, 156), (156, 156, 156)),
    ),
    **{
        suffix: (lambda: Image.new("RGB", (20, 20), (250, 100, 50)), suffix, (250, 100, 50), (250, 100, 50))
        for suffix in ("bmp", "gif", "tif", "tiff", "ppm", "jfif")
    },
    "16-bit TIFF": (
        lambda: Image.fromarray(np.full((20, 20), 40_000, np.uint16)),
        *("tif", (156, 156, 156), (156, 156, 156)),
    ),
    "grey netpbm": (lambda: Image.new("L", (20, 20), 77), "pgm", (77, 77, 77), (77, 77, 77)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_image_becomes_rgb(mode: str, tmp_path: Path) -> None:
    make, suffix, left, right = MODES[mode]
    file = tmp_path / f"x.{suffix}"
    make().save(file, **({"lossless": True} if suffix == "webp" else {}))
    for x in (decode(file, 20, None, 1), decode(file, 40, None, 1)):
        assert (x.dtype, x.shape[0]) == (np.uint8, 3)
        near = 4 if suffix in ("jpg", "jfif") else 0
        for side, value in ((x[:, :, 0], left), (x[:, :, -1], right)):
            assert np.abs(side.astype(int) - np.array(value)[:, None]).max() <= near


def test_a_random_crop_is_a_function_of_the_seed(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    scene(90, 60).save(file)
    state = torch.get_rng_state()
    crops = [decode(file, 16, seed, 1) for seed in range(20)]
    np.random.default_rng().random(3)
    assert all(np.array_equal(crop, decode(file, 16, seed, 1.5)) for seed, crop in enumerate(crops))
    assert len({crop.tobytes() for crop in crops}) == 20
    assert torch.equal(state, torch.get_rng_state())


def test_random_boxes_are_those_of_the_paper() -> None:
    width, height = 500, 375
    boxes = np.array([_random_box(width, height, seed) for seed in range(3000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= width and bottom.max() <= height
    w, h = right - left, bottom - top
    area, ratio = w * h / (width * height), w / h
    assert 0.079 < area.min() < 0.1 and 0.95 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.35
    # large areas at a ratio that does not fit are drawn again, so the mean lies below 0.54
    assert 0.42 < area.mean() < 0.54
    assert abs(np.log(ratio[area < 0.5]).mean()) < 0.02, "the logarithm of the ratio is uniform"
    for start, room in ((left, width - w), (top, height - h)):
        assert abs((start[room > 20] / room[room > 20]).mean() - 0.5) < 0.03
    assert left[w < 300].min() == 0 and right[w < 300].max() == width


@given(width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_a_box_lies_within_its_image(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = _random_box(width, height, seed)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 300), (300, 1), (2, 5)])
def test_extreme_images_are_decoded(width: int, height: int, tmp_path: Path) -> None:
    Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / "x.bmp")
    for seed in (None, 0, 1, 2):
        x = decode(tmp_path / "x.bmp", 16, seed, 256 / 224)
        assert (x == np.array([10, 20, 30])[:, None, None]).all()


@pytest.mark.parametrize(("width", "height"), [(2000, 1503), (1111, 1777)])
def test_a_large_jpeg_is_decoded_as_by_a_plain_resize(width: int, height: int, tmp_path: Path) -> None:
    """Though the decoder leaves out the frequencies that the result can't show."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    texture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    file = tmp_path / "x.jpg"
    Image.blend(scene(width, height), texture, 0.4).save(file, quality=92)
    with Image.open(file) as image:
        full = image.convert("RGB")
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    for size, seed in ((96, None), (224, None), (96, 3), (64, 8)):
        box = (left, top, left + side, top + side) if seed is None else _random_box(width, height, seed)
        expected = np.asarray(full.resize((size, size), Image.Resampling.BILINEAR, box)).transpose(2, 0, 1)
        difference = np.abs(decode(file, size, seed, 1).astype(int) - expected)
        assert difference.mean() < 1.5
        assert difference.max() < 30


def test_of_several_pictures_in_a_file_the_first_is_read(tmp_path: Path) -> None:
    first, *others = (Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue"))
    for name in ("x.gif", "x.tif", "x.webp", "x.png"):
        first.save(tmp_path / name, save_all=True, append_images=others, **({"lossless": True} if "webp" in name else {}))
        assert (decode(tmp_path / name, 8, None, 1) == np.array([255, 0, 0])[:, None, None]).all(), name


def scans(n: int) -> bytes:
    """A progressive JPEG of 2,000 x 2,000 pixels, whose last scan is there `n` times."""
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG", progressive=True)
    raw = file.getvalue()
    return raw[:-2] + raw[raw.rindex(b"\xff\xda") : -2] * (n - 1) + raw[-2:]


def tiled(side: int) -> bytes:
    """A TIFF of 16 x 16 pixels in a deflated tile that says to be of that side."""
    tile = zlib.compress(bytes(256))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(tile)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(tile)) + tile + struct.pack("<H", len(tags)) + entries + bytes(4)


COSTLY: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: scans(400), r"it is drawn in 40\d scans of 4,000,000 pixels"),
    "tile": (lambda: tiled(60_000), "its tiles have 3,600,000,000 pixels"),
    "floats": (lambda: saved(Image.fromarray(np.ones((9, 9), np.float32))), "its pixels are floating-point numbers"),
    "32 bits": (lambda: saved(Image.fromarray(np.full((9, 9), 70_000, np.int32))), "its pixels have more than 16 bits"),
    "below 0": (lambda: saved(Image.fromarray(np.full((9, 9), -1, np.int32))), "its pixels have more than 16 bits"),
}


def saved(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("kind", COSTLY)
def test_images_that_would_take_long_or_be_another_are_refused(kind: str, tmp_path: Path) -> None:
    raw, words = COSTLY[kind]
    (tmp_path / "x.jpg").write_bytes(raw())
    with pytest.raises(ValueError, match=rf"x\.jpg can't be decoded as an image \({words}") as caught:
        decode(tmp_path / "x.jpg", 16, None, 1)
    (tmp_path / "fine.tif").write_bytes(tiled(16))
    assert not decode(tmp_path / "fine.tif", 16, None, 1).any()
    assert "\n" not in str(caught.value)
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**40)
    os.mkfifo(tmp_path / "y.png")
    for name in ("x.png", "y.png"):
        with pytest.raises(ValueError, match="it is no file of at most 268,435,456 bytes"):
            decode(tmp_path / name, 16, None, 1)


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.png"
    Image.new("RGB", (50, 50)).save(file)
    for limit in (2000, 900):  # a warning of Pillow, and an error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"x\.png has more pixels than Pillow considers safe"):
            decode(file, 16, None, 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "gif", "tif", "ppm"])
@given(changes=MUTATIONS, cut=st.integers(0, 1000), random=st.binary(max_size=300), keep=st.booleans())
@settings(max_examples=50, deadline=None)
def test_any_damage_of_an_image_is_a_sentence_or_harmless(
    suffix: str, intact: Path, changes: list[tuple[int, int]], cut: int, random: bytes, keep: bool
) -> None:
    file = intact / f"damaged.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(40, 30).save(file, **({"exif": exif} if suffix in ("png", "jpg", "webp", "tif") else {}))
    file.write_bytes(mutated(file.read_bytes(), changes, cut) if keep else random)
    for seed in (None, cut):
        harmless(lambda seed=seed: decode(file, 16, seed, 1.1), file.name)  # type: ignore[misc]


# the cache, and workers


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(file: Path, size: int, seed: int | None, margin: float) -> np.ndarray:
        raise AssertionError("there is a cache")

    monkeypatch.setattr(image_files_module, "decode", decode)


def test_images_are_decoded_into_a_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path / "set")
    first = images(path, decoded=True)
    (place,) = (tmp_path / "cache").iterdir()
    assert (place / "rows").stat().st_size == 18 * 3 * 18 * 18  # round(16 * 256 / 224) = 18
    assert mean_colours(first.train) == mean_colours(images(path).train)
    no_decoding(monkeypatch)
    again = images(path, decoded=True)
    assert first.shape == again.shape == (3, 16, 16)
    assert np.array_equal(read_all(first.train), read_all(again.train))
    assert np.array_equal(read_all(first.test), read_all(again.test))
    assert again.checksums == first.checksums and "contents" in first.checksums
    (a,), (b,) = (next(epoch_batches(d, 12, Augment(resized_crop=True), 0, 0)) for d in (first, again))
    assert torch.equal(a.x, b.x)
    with pytest.raises(AssertionError, match="there is a cache"):
        images(path, decoded=True, size=20)


def test_the_middle_is_the_same_with_a_cache_and_without(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", classes=2, n=2)
    for file in path.rglob("*.png"):
        scene(150, 120).save(file)
    direct, kept = (read_all(images(path, size=56, decoded=decoded).test).astype(float) for decoded in (False, True))
    assert np.abs(direct - kept).mean() < 1


def test_the_cache_of_a_changed_folder_is_another(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    before = images(path, decoded=True)
    Image.new("RGB", (30, 30), (1, 2, 3)).save(path / "train" / "c0" / "9.png")
    after = images(path, decoded=True)
    assert mean_colours(after.train)[4] == [1, 2, 3]
    assert after.checksums != before.checksums
    (path / "train" / "c0" / "9.png").rename(path / "train" / "c1" / "9.png")
    moved = images(path, decoded=True)
    assert moved.train.labels.tolist() == [0] * 4 + [1] * 5 + [2] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 3


def flip(file: Path, place: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(bytes(raw))


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads(file.read_text())
    change(facts)
    file.write_text(json.dumps(facts))


CACHE_FAULTS: dict[str, Callable[[Path], Any]] = {
    "a bit": lambda p: flip(p / "rows", 1000),
    "truncated": lambda p: (p / "rows").write_bytes((p / "rows").read_bytes()[:-972]),
    "empty": lambda p: (p / "rows").write_bytes(b""),
    "no rows": lambda p: (p / "rows").unlink(),
    "no facts": lambda p: (p / "facts.json").unlink(),
    "other facts": lambda p: (p / "facts.json").write_text("[]"),
    "deep facts": lambda p: (p / "facts.json").write_text("[" * 100_000),
    "a pipe": lambda p: ((p / "facts.json").unlink(), os.mkfifo(p / "facts.json")),
    "no text": lambda p: (p / "facts.json").write_bytes(b"\xff\xfe"),
    "no list of broken files": lambda p: edit(p / "facts.json", lambda facts: facts.pop("broken")),
    "another broken file": lambda p: edit(p / "facts.json", lambda facts: facts.update(broken={"0": "why"})),
    "no broken file": lambda p: edit(p / "facts.json", lambda facts: facts.update(broken={})),
}


@pytest.mark.parametrize("fault", CACHE_FAULTS)
def test_a_damaged_cache_is_refused(fault: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    (path / "train" / "c1" / "2.png").write_bytes(b"")
    images(path, decoded=True, broken="skip")
    (place,) = (tmp_path / "cache").iterdir()
    CACHE_FAULTS[fault](place)
    with pytest.raises(ValueError, match=f"the cache {place} is damaged: remove it"):
        images(path, decoded=True, broken="skip")
    remove(place)
    assert len(images(path, decoded=True, broken="skip").train) == 11


def test_a_cache_serves_its_own_folder_only(tmp_path: Path) -> None:
    """Though names and sizes of the files are those of another."""
    for name, shade in (("one", 10), ("other", 200)):
        for part in ("train", "val"):
            for label in "ab":
                (tmp_path / name / part / label).mkdir(parents=True)
                Image.new("RGB", (16, 16), (shade,) * 3).save(tmp_path / name / part / label / "0.bmp")
    for name, shade in (("one", 10), ("other", 200)):
        data = images(tmp_path / name, decoded=True)
        assert np.unique(read_all(data.train)).tolist() == [shade]


def test_a_class_of_which_nothing_is_left_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    for file in (path / "train" / "c1").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="has no readable training sample of the class c1"):
        images(path, broken="skip")


def test_two_folders_of_one_part_are_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    (path / "valid").mkdir()
    with pytest.raises(ValueError, match="has the folders val and valid, which mean the same part: keep one of them"):
        listed(path)


def test_nothing_is_left_of_a_cache_that_was_not_finished(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    (path / "train" / "c1" / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.png"):
        images(path, decoded=True)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "full").write_text("a file where the cache should go")
    with pytest.raises(ValueError, match="can't be written"):
        images(path, decoded=True, cache=tmp_path / "full")


def test_somebody_who_waits_sees_how_far_it_is(tmp_path: Path) -> None:
    path, seen = write_folder(tmp_path / "set"), []

    def track(items: Iterator[Any], what: str, total: int) -> Iterator[Any]:
        done = list(items)
        seen.append((what, total, len(done)))
        return iter(done)

    data = Data("images", path, size=16, workers=0, cache=tmp_path / "cache", decoded=True)
    load(data, 1, track)
    assert seen == [("checking images", 18, 18), ("decoding images", 18, 18), ("checking the cache", 1, 1)]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set")
    for k, file in enumerate(sorted(path.rglob("*.png"))):
        scene(40 + 3 * k, 50).save(file)
    data = images(path, workers=workers)
    plain = np.concatenate([x.numpy() for x in data.train.read([Block(b) for b in torch.arange(12).split(5)], CPU)])
    files = [file for file, _ in listed(path).train]
    assert np.array_equal(plain, np.stack([decode(file, 16, None, 256 / 224) for file in files]))
    asked: list[tuple[list[int], int | None]] = [([3, 1, 7], 5), ([2], None), ([3, 1, 7], 6), ([3, 3], 5)]
    blocks = [Block(torch.tensor(index), seed) for index, seed in asked]
    first, second, third, fourth = (x.numpy() for x in data.train.read(blocks, CPU))
    assert np.array_equal(second[0], plain[2])
    assert not np.array_equal(first, third)
    assert np.array_equal(first[0], fourth[0])
    assert not np.array_equal(fourth[0], fourth[1]), "each place has its own crop"
    direct = list(images(path, workers=0).train.read(blocks, CPU))
    assert all(np.array_equal(a, b) for a, b in zip((first, second, third, fourth), direct, strict=True))
    here, kept = (d.train.gather(torch.tensor([5, 0]), CPU) for d in (data, images(path, decoded=True)))
    assert here.labels.tolist() == kept.labels.tolist() == [1, 0]
    assert np.array_equal(read_all(here), plain[[5, 0]])
    files[6].write_bytes(b"")
    with pytest.raises(ValueError, match=str(files[6])):
        list(plain_batches(data, data.train, 5, CPU))


# real data


def test_cifar100_real_files(real_data: Callable[[str], Path]) -> None:
    data = load(Data("cifar100", real_data("cifar100")), 1)
    assert (len(data.train), len(data.test), len(data.classes)) == (1117, 916, 100)
    assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == set(range(100))
    assert (data.classes[0], data.classes[99]) == ("apple", "worm")
    assert isinstance(data.train, Stored)
    x = data.units.normalize(data.units.scale(data.train.samples))
    assert x.mean((0, 2, 3)).abs().max() < 0.1
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.1


def test_imagenette_real_files(real_data: Callable[[str], Path]) -> None:
    data = load(Data("images", real_data("imagenette") / "imagenette", size=64, workers=0), 1)
    assert (len(data.train), len(data.test), len(data.classes)) == (600, 200, 10)
    assert min(torch.bincount(data.train.labels, minlength=10)) > 0
    x = torch.cat([x for x, _ in plain_batches(data, data.test, 50, CPU)])
    assert x.shape == (200, 3, 64, 64)
    assert x.mean((0, 2, 3)).abs().max() < 0.4
    assert (x.std((0, 2, 3)) - 1).abs().max() < 0.3
    part = next(epoch_batches(data, 40, Augment(resized_crop=True, flip=True), 0, 0))[0]
    assert part.x.shape == (40, 3, 64, 64)
    assert math.isfinite(float(part.x.sum()))
