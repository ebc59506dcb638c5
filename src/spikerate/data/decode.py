"""Decoding of image files."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""The formats that are read, whatever the file's suffix; Pillow would hand PostScript to an interpreter."""
_LARGEST = 2**28
"""Largest file in bytes."""
_WORK = 2**29
"""Largest product of a JPEG's scans and pixels. Each scan is a pass over all pixels, and takes a few bytes of the file."""
_SCAN = b"\xff\xda"
_TILE_WIDTH, _TILE_LENGTH = 322, 323
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
"""EXIF orientation -> the transposition that makes the picture upright."""


def decode(file: Path, size: int, seed: int | None, margin: float) -> np.ndarray:
    """Decode an image to [3, size, size] bytes: upright by its EXIF orientation, transparent parts black.

    Of a file with several images, the first is read.

    Args:
        file: the image file.
        size: side of the result in pixels.
        seed: of a random resized crop, 8 to 100 % of the area with an aspect ratio from 3/4 to 4/3 (Szegedy et al., CVPR
            2015); None for a centre crop.
        margin: for a centre crop, the short side is first resized to `margin * size`.

    Raises:
        ValueError: the file is broken, is not one of the formats above, has more pixels than Pillow considers safe, or is
            made to take very long; the message names the file.
    """
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:
            raise ValueError(f"it is no file of at most {_LARGEST:,} bytes")
        raw = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
                _check(image, raw)
                if isinstance(image, TiffImageFile):
                    image.load()  # this makes it upright, and removes the orientation
                turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
                width, height = image.size
                box = _middle(width, height, margin) if seed is None else _random_box(width, height, seed)
                few = min(box[2] - box[0], box[3] - box[1]) / size / 2  # keeps at least two pixels per pixel of the result
                image.draft(None, (math.ceil(width / few), math.ceil(height / few)))
                rgb = _rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{file} has more pixels than Pillow considers safe: make it smaller") from error
    except Exception as error:  # a broken file can raise anything in a decoder
        raise ValueError(f"{file} can't be decoded as an image ({error or type(error).__name__}): replace it") from error
    drafted = round(width / rgb.width)  # 1, 2, 4 or 8; the sides of the draft are rounded up
    left, top, right, bottom = (edge / drafted for edge in box)
    cut = rgb.resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))
    upright = cut if turn is None else cut.transpose(turn)  # after the cut: rounding extends the image as it is stored
    return np.asarray(upright).transpose(2, 0, 1).copy()


def _check(image: Image.Image, raw: bytes) -> None:
    """Raise `ValueError` if decoding would take far more time or memory than the number of pixels suggests."""
    pixels = image.width * image.height
    scans = raw.count(_SCAN) if isinstance(image, JpegImageFile) else 0
    if scans * pixels > _WORK:
        raise ValueError(f"it is drawn in {scans} scans of {pixels:,} pixels")
    if isinstance(image, TiffImageFile):
        tile = image.tag_v2.get(_TILE_WIDTH, 0) * image.tag_v2.get(_TILE_LENGTH, 0)
        if tile > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"its tiles have {tile:,} pixels")


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
    return width / 2 - half_w, height / 2 - half_h, width / 2 + half_w, height / 2 + half_h  # the nearest allowed ratio


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, not whole ones of 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip values above 255
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")
