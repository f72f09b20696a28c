"""How large an image file is, as it is seen; and what a file that is no image makes Pillow raise."""

import struct
from pathlib import Path

from PIL import Image

UNREADABLE_IMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What opening or decoding a file raises that is missing, broken, or too large to be safe."""
_EXIF_ORIENTATION = 0x0112


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in px by the file's header, EXIF orientation applied. Raises one of `UNREADABLE_IMAGE`."""
    with Image.open(path) as opened:
        is_turned = opened.getexif().get(_EXIF_ORIENTATION, 1) >= 5
        return opened.size[::-1] if is_turned else opened.size
