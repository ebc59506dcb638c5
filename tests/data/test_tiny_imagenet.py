"""Tiny ImageNet in its official layout, written small from its description: labels, parts, and what is wrong with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spikerate.data import SETS, Augment, Data, epoch_batches, input_shape, load, read_sample
from spikerate.data.samples import Block
from spikerate.data.tiny_imagenet import list_tiny_imagenet
from support.images import colour, write_tiny_imagenet

CPU = torch.device("cpu")


def test_images_have_the_labels_of_their_folders_and_of_the_table(tmp_path: Path) -> None:
    """Labels follow the sorted numbers of WordNet, whatever the order of wnids.txt and of the names in val."""
    folder = write_tiny_imagenet(tmp_path, classes=4, n=3, tests=2)
    found = list_tiny_imagenet(folder)
    assert found.classes == ("thing0", "thing1", "thing2", "thing3")
    assert [(file.name, label) for file, label in found.train] == [
        (f"n0000000{label}_{k}.JPEG", label) for label in range(4) for k in range(3)
    ]
    assert [(file.name, label) for file, label in found.test] == [
        (f"val_{4 * k + 3 - label}.JPEG", label) for label in range(4) for k in range(2)
    ]
    assert found.validation == ()
    assert found.split == "training samples are those of the folder train, test samples are those of the folder val"
    assert found.notes == ("test samples are those of val, since the folder test has no labels",)


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of 12 classes instead of 200."""
    monkeypatch.setitem(SETS, "tiny-imagenet", replace(SETS["tiny-imagenet"], num_classes=12))
    return write_tiny_imagenet(tmp_path, classes=12, n=4, tests=2)


def settings(path: Path, **more: Any) -> Data:
    return Data("tiny-imagenet", path, workers=0, cache=path.parent / "cache", **more)


def test_the_set_is_loaded_whole_and_its_validation_set_is_the_same_each_time(official: Path) -> None:
    data = load(settings(official, validation=8), 1)
    again = load(settings(official.parent, validation=8), 1)  # by the parent folder
    assert [len(part) for part in (data.train, data.validation, data.test)] == [40, 8, 24]
    assert (data.drawn, data.checksums, data.split) == (again.drawn, again.checksums, again.split)
    assert data.shape == input_shape(settings(official)) == (3, 64, 64)
    assert data.test.labels.tolist() == [label for label in range(12) for _ in range(2)]
    assert "test samples are those of the folder val" in data.split
    for part, name in ((data.train, "train"), (data.validation, "train"), (data.test, "val")):
        (x,) = part.read([Block(torch.arange(len(part)))], CPU)
        assert (x.dtype, x.shape[1:]) == (torch.uint8, (3, 64, 64))
        wanted = torch.tensor([colour(name, label, 0)[:2] for label in part.labels.tolist()])
        assert (x[:, :2].float().mean((2, 3)) - wanted).abs().max() < 3  # JPEG
    (part,) = next(epoch_batches(data, 32, Augment(crop=8, flip=True), 0, 0))
    assert part.x.shape == (32, 3, 64, 64)
    assert load(settings(official, size=32), 1).shape == (3, 32, 32)


def test_a_single_file_is_read_as_those_of_the_set(official: Path) -> None:
    data = load(settings(official), 1)
    (x,) = data.test.read([Block(torch.tensor([7]))], CPU)
    file = list_tiny_imagenet(official).test[7][0]
    assert torch.equal(read_sample(file, settings(official), 1), x[0])


def test_a_broken_image_stops_or_is_left_out(official: Path) -> None:
    file = official / "train" / "n00000005" / "images" / "n00000005_1.JPEG"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"{file.name} can't be decoded as an image .*; --data.broken skip leaves"):
        load(settings(official), 1)
    data = load(settings(official, broken="skip"), 1)
    assert (len(data.train), len(data.test), len(data.skipped)) == (47, 24, 1)
    assert data.train.labels.tolist() == [k for k in range(12) for _ in range(3 if k == 5 else 4)]


def test_what_is_not_read_is_counted(tmp_path: Path) -> None:
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "images" / "Thumbs.db").touch()
    (folder / "train" / "__MACOSX").mkdir()
    assert f"not read in {folder}: files of .db (1); images are files that end in" in list_tiny_imagenet(folder).notes[1]


def edit(*parts: str, **change: str) -> Callable[[Path], Any]:
    """Replace the text `old` of a file by `new`."""

    def apply(folder: Path) -> None:
        file = folder.joinpath(*parts)
        before = file.read_text()
        assert change["old"] in before
        file.write_text(before.replace(change["old"], change["new"], 1))

    return apply


TABLE = ("val", "val_annotations.txt")
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no wnids": (lambda p: (p / "wnids.txt").unlink(), r"wnids\.txt does not exist: unpack the data set again"),
    "no words": (lambda p: (p / "words.txt").unlink(), r"words\.txt does not exist"),
    "no table": (lambda p: p.joinpath(*TABLE).unlink(), r"val_annotations\.txt does not exist"),
    "no train": (lambda p: shutil.rmtree(p / "train"), "train can't be read"),
    "no images of val": (lambda p: shutil.rmtree(p / "val" / "images"), r"val/images can't be read"),
    "a class less": (lambda p: shutil.rmtree(p / "train" / "n00000001"), "train has no folder of the class n00000001"),
    "a class more": (lambda p: (p / "train" / "n00000009").mkdir(), r"has the folder n00000009, which wnids\.txt does not"),
    "no images folder": (lambda p: shutil.rmtree(p / "train" / "n00000001" / "images"), "n00000001/images can't be read"),
    "no images": (
        lambda p: [f.unlink() for f in (p / "train" / "n00000001" / "images").iterdir()],
        "the class n00000001 has no images in .*n00000001/images",
    ),
    "twice an image": (
        lambda p: shutil.copy(*(p / "train/n00000001/images" / f"n00000001_0.{s}" for s in ("JPEG", "jpeg"))),
        r"n00000001_0\.JPEG exists twice, in upper and lower case",
    ),
    "no number": (edit("wnids.txt", old="n00000001", new="../secret"), r"wnids\.txt has '\.\./secret' in line 2"),
    "twice a class": (
        edit("wnids.txt", old="n00000001", new="n00000002"),
        r"wnids\.txt lists n00000002 twice, again in line 2",
    ),
    "no class": (lambda p: (p / "wnids.txt").write_text("\n"), r"has the folder n00000000, which wnids\.txt does not list"),
    "binary wnids": (lambda p: (p / "wnids.txt").write_bytes(b"n0\xff\xfe"), r"wnids\.txt is no text at byte 2"),
    "no tab": (
        edit("words.txt", old="n00000001\t", new="n00000001 "),
        r"words\.txt has 'n00000001 thing1, object 1' in line 2",
    ),
    "no word": (edit("words.txt", old="n00000001", new="n00000077"), r"words\.txt has no words for the class n00000001"),
    "large words": (lambda p: (p / "words.txt").write_bytes(b"\n" * (2**23 + 1)), "has more than 8,388,608 bytes"),
    "large table": (lambda p: p.joinpath(*TABLE).write_bytes(b"\n" * (2**20 + 1)), "has more than 1,048,576 bytes"),
    "empty table": (lambda p: p.joinpath(*TABLE).write_bytes(b""), r"val_annotations\.txt is empty"),
    "no box": (edit(*TABLE, old="n00000001\t0\t32\t44\t62", new="n00000001"), r"in line 2, and not 6 columns with tabs"),
    "unknown class": (
        edit(*TABLE, old="n00000001", new="n00000009"),
        r"'val_1\.JPEG' the class 'n00000009' in line 2, which",
    ),
    "twice a name": (edit(*TABLE, old="val_1.", new="val_0."), r"lists 'val_0\.JPEG' twice, again in line 2"),
    "no such image": (
        edit(*TABLE, old="val_1.", new="../val_1."),
        r"lists '\.\./val_1\.JPEG', which is not in .*val/images",
    ),
    "no label": (
        lambda p: Image.new("RGB", (64, 64)).save(p / "val" / "images" / "val_9.JPEG"),
        r"val_9\.JPEG has no line in .*val_annotations\.txt",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_layout_is_one_sentence_that_names_the_file(fault: str, tmp_path: Path) -> None:
    spoil, words = FAULTS[fault]
    spoil(write_tiny_imagenet(tmp_path))
    with pytest.raises(ValueError, match=words) as caught:
        load(settings(tmp_path), 1)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    with pytest.raises(ValueError, match="has 3 classes, and tiny-imagenet 200: for class folders of your own give"):
        load(settings(tmp_path), 1)
