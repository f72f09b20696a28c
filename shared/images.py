"""Image files as both processes see them: upright, in 8-bit RGB, on white paper. What cannot be so is one error.

The learner opens whatever a data set holds, a rollout server what it is sent. Both come here, so that an image means
the same pixels, or the same refusal, on either side.
"""

import io
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import StubImageFile
from PIL.PngImagePlugin import PngImageFile

from shared.errors import BoxloopError, DataError

LARGEST_FILE_PX = 100_000_000
"""Larger images are refused before a pixel of them is decoded."""

MAX_ASPECT_RATIO = 200
"""Image processors of the families fail on anything longer."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation but 1, which is upright; from 5 on width and height are exchanged."""

_TURNED_BY_PILLOW = ("TIFF", "PCD")
"""Formats whose readers turn images upright, and say the size that they have then."""

_WHITE = 255
_SIXTEEN_BITS_OF_WHITE = 257  # 65535 / 255
_NO_WAY = {
    "F": "pixels are floating-point numbers, of which nobody says how bright white is",
    "I": "pixels are 32-bit whole numbers, of which nobody says how bright white is",
    "LAB": "colours are CIELAB",
}
"""Modes that have no one way to 8-bit RGB."""

Image.MAX_IMAGE_PIXELS = None  # LARGEST_FILE_PX is compared first, with a message of ours


class BadImage(DataError):
    """A file that is no image, a broken one, or one that nothing here can be taught from; says why, not which."""


@dataclass(frozen=True)
class OpenedImage:
    """`image` is RGB, upright and on white; `is_as_stored` when a PNG file holds exactly these pixels."""

    image: Image.Image
    is_as_stored: bool


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in px of an image as it is seen, by the file's header alone.

    Raises FileNotFoundError, and BadImage for what the header shows to be unusable.
    """
    with path.open("rb") as file, _as_bad_image(), Image.open(file) as opened:
        return _seen_size(opened, file)


def holds_image(path: Path) -> bool:
    """Whether a file begins as one of a format that can be read here."""
    try:
        with path.open("rb") as file, _as_bad_image(), Image.open(file) as opened:
            return not isinstance(opened, StubImageFile)  # of a format that Pillow knows by its name alone
    except (OSError, BadImage):
        return False


def open_image(
    data: bytes, check_size: Callable[[int, int], None] | None = None, formats: Collection[str] | None = None
) -> OpenedImage:
    """Decode an image file. Raises BadImage for whatever is wrong with it.

    `check_size` is given width and height before a pixel is decoded, and may refuse them by an error of its own.
    `formats` are Pillow's names of those that are read, None = all.
    """
    file = io.BytesIO(data)
    with _as_bad_image(), Image.open(file, formats=None if formats is None else tuple(formats)) as opened:
        width, height = _seen_size(opened, file)
        if check_size is not None:
            check_size(width, height)
        turn = _UPRIGHT.get(_orientation(opened, file))
        is_plain = opened.mode == "RGB" and not opened.has_transparency_data
        is_as_stored = opened.format == "PNG" and is_plain and turn is None
        image = _in_rgb(opened)
        if turn is not None:
            image = image.transpose(turn)
    if image.size != (width, height):
        raise BadImage(f"its header says {width}x{height} px, it holds {image.width}x{image.height}")
    return OpenedImage(image, is_as_stored)


def check_aspect_ratio(width: int, height: int) -> None:
    """Raise BadImage for an image of a shape that no image processor takes."""
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise BadImage(f"{width}x{height} px are longer than {MAX_ASPECT_RATIO} to 1; cut it into pieces")


@contextmanager
def _as_bad_image() -> Iterator[None]:
    """Pillow's readers raise whatever a broken file leads them to, so no list of exceptions would ever be whole."""
    try:
        yield
    except BoxloopError:
        raise
    except UnidentifiedImageError:
        raise BadImage("it is in no image format that is read here") from None
    except Exception as error:
        raise BadImage(f"{error}" if isinstance(error, OSError | SyntaxError | ValueError) else repr(error)) from error


def _seen_size(opened: Image.Image, file: BinaryIO) -> tuple[int, int]:
    """The size as it is seen. Raises BadImage for what the header shows to be unusable."""
    width, height = opened.size
    if width < 1 or height < 1:
        raise BadImage(f"it has no extent: {width}x{height} px")
    if width * height > LARGEST_FILE_PX:
        raise BadImage(f"{width}x{height} px are more than {LARGEST_FILE_PX} in all")
    if opened.mode in _NO_WAY and not _is_sixteen_bit(opened):
        raise BadImage(f"its mode is {opened.mode}: {_NO_WAY[opened.mode]}; convert it to 8-bit RGB")
    return (height, width) if _orientation(opened, file) >= 5 else (width, height)


def _is_sixteen_bit(opened: Image.Image) -> bool:
    """Whether 32-bit whole numbers are known to be 16-bit ones, as in a PGM file."""
    return opened.mode == "I" and opened.format in ("PPM", "PNG", "JPEG2000")


def _orientation(opened: Image.Image, file: BinaryIO) -> int:
    """The EXIF orientation 1..8 that is still to be undone; 1 for one that cannot be read, as browsers have it."""
    if opened.format in _TURNED_BY_PILLOW:
        return 1
    try:
        if isinstance(opened, PngImageFile) and not _says_more_behind_its_pixels(file):
            value = Image.Image.getexif(opened).get(_ORIENTATION)  # a PNG's own would decode the pixels first
        else:
            value = opened.getexif().get(_ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _says_more_behind_its_pixels(file: BinaryIO) -> bool:
    """Whether a PNG has chunks behind its pixels that may hold its orientation."""
    place = file.tell()
    try:
        file.seek(8)
        are_over = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if are_over and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            are_over = are_over or kind == b"IDAT"
            file.seek(length + 4, io.SEEK_CUR)
        return False
    finally:
        file.seek(place)


def _in_rgb(image: Image.Image) -> Image.Image:
    """All modes of Pillow to RGB: 16 bits are scaled to 8, what is transparent is laid on white."""
    if image.mode.startswith("I"):
        return _from_sixteen_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    seen = image.convert("RGBA")
    paper = Image.new("RGBA", seen.size, (_WHITE, _WHITE, _WHITE, _WHITE))
    return Image.alpha_composite(paper, seen).convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    grey = ((values + _SIXTEEN_BITS_OF_WHITE // 2) // _SIXTEEN_BITS_OF_WHITE).clip(0, _WHITE).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = _WHITE
    return Image.fromarray(grey).convert("RGB")
