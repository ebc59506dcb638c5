"""Class folders of image files: which there are, and how one is decoded."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""Whatever the file's name says: Pillow would hand PostScript to an interpreter."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
_TESTS = ("val", "validation", "test")

Entries = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class Listing:
    """Files with their labels, in the order of classes and names; `test` is empty where there are no such folders."""

    train: Entries
    test: Entries
    classes: tuple[str, ...]


def list_images(path: Path) -> Listing:
    """`PATH/train/CLASS/...` and `PATH/val/CLASS/...` (or `validation`, or `test`), or `PATH/CLASS/...`.

    Raises:
        ValueError: there are no class folders, a class has no images, a name is there twice but for its case, or the
            two parts differ in their classes.
    """
    tests = [path / name for name in _TESTS if (path / name).is_dir()]
    if not (path / "train").is_dir():
        if tests:
            raise ValueError(f"{path} has a folder {tests[0].name}, but none named train: put the training images there")
        train, classes = _part(path)
        return Listing(train, (), classes)
    if len(tests) > 1:
        names = " and ".join(test.name for test in tests)
        raise ValueError(f"{path} has the folders {names}: keep the one to test on")
    train, classes = _part(path / "train")
    if not tests:
        return Listing(train, (), classes)
    test, others = _part(tests[0])
    differing = sorted(set(classes) ^ set(others))
    if differing:
        where = "train" if differing[0] in classes else tests[0].name
        raise ValueError(f"the class {differing[0]} is in {path / where} only: give train and {tests[0].name} the same")
    return Listing(train, test, classes)


def _part(folder: Path) -> tuple[Entries, tuple[str, ...]]:
    with os.scandir(folder) as entries:
        classes = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"{folder} has {len(classes)} class folders: give a folder with one for each class, two at least")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(
            os.path.join(place, file)  # noqa: PTH118  # a million Path objects take a minute
            for place, _, inside in os.walk(folder / name)
            for file in inside
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")  # noqa: PTH122
        )
        if not found:
            raise ValueError(f"the class {name} has no images in {folder / name}: add some ({', '.join(sorted(SUFFIXES))})")
        lower = [file.lower() for file in found]
        if len(set(lower)) < len(lower):
            twice = next(file for file in found if lower.count(file.lower()) > 1)
            raise ValueError(f"{twice} is there twice, in upper and lower case: rename or remove one of the two")
        files += [(Path(file), label) for file in found]
    return tuple(files), tuple(classes)


def decode(file: Path, size: int, seed: int | None, margin: float) -> np.ndarray:
    """An image as [3, size, size] bytes, upright by its EXIF orientation, transparent parts black.

    Args:
        seed: of a random resized crop, 8 to 100 % of the area at a ratio of sides from 3/4 to 4/3 (Szegedy et al., CVPR
            2015); None for the middle of the image.
        margin: without a seed, the short side is brought to `margin * size` before the middle is cut out.

    Raises:
        ValueError: the file is broken, no image, or larger than Pillow takes for safe; the sentence names it.
    """
    if not file.is_file():
        raise ValueError(f"{file} can't be decoded as an image (it is no file): remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
                width, height = image.size
                box = _middle(width, height, margin) if seed is None else _random_box(width, height, seed)
                few = min(box[2] - box[0], box[3] - box[1]) / size / 2  # at least two pixels for one of the result
                image.draft(None, (math.ceil(width / few), math.ceil(height / few)))
                rgb = _rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{file} has more pixels than Pillow takes for safe: make it smaller") from error
    except Exception as error:  # a broken file can raise anything in a decoder
        raise ValueError(f"{file} can't be decoded as an image ({error or type(error).__name__}): replace it") from error
    drafted = round(width / rgb.width)  # 1, 2, 4 or 8, where the sides are rounded up
    left, top, right, bottom = (edge / drafted for edge in box)
    cut = rgb.resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))
    upright = cut if turn is None else cut.transpose(turn)  # after the cut: what rounding adds is at the stored end
    return np.asarray(upright).transpose(2, 0, 1).copy()


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _middle(width: int, height: int, margin: float) -> Box:
    side = min(width, height) / margin
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, seed: int) -> Box:
    rng = np.random.default_rng(seed)
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    half_w, half_h = min(width, height * 4 / 3) / 2, min(height, width * 4 / 3) / 2
    return width / 2 - half_w, height / 2 - half_h, width / 2 + half_w, height / 2 + half_h  # at the nearest allowed ratio


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, of which Pillow's own conversion would clip all but the lowest 8
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")
