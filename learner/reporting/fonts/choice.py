"""A font for every label: Pillow's own for plain letters, and one that travels with us for all other scripts."""

import gzip
import io
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_UNIFONT = Path(__file__).with_name("unifont.pcf.gz")
"""GNU Unifont: every character up to U+FFFF as a picture of 16 px; see LICENSE.txt beside it."""
_UNIFONT_PX = 16
_LAST_OF_UNIFONT = 0xFFFF
_ALSO_PLAIN = "·–"
"""What Pillow's own font has besides ASCII, of what our labels are made of."""


def font_for(text: str, size: int) -> Font:
    """The font that has all characters of `text`, at about `size` px."""
    is_plain = all(letter.isascii() or letter in _ALSO_PLAIN for letter in text)
    return _plain(size) if is_plain else _any_script(size)


def drawable(text: str) -> str:
    """`text` with characters that no font here has, such as emoji, by their number: U+1F600."""
    return "".join(letter if ord(letter) <= _LAST_OF_UNIFONT else f"U+{ord(letter):X}" for letter in text)


@cache
def _plain(size: int) -> Font:
    return ImageFont.load_default(size)


@cache
def _any_script(size: int) -> Font:
    try:
        # Unpacked: FreeType would unpack it from the start again for every letter, at up to 50 ms each.
        return ImageFont.truetype(io.BytesIO(gzip.decompress(_UNIFONT.read_bytes())), _UNIFONT_PX)
    except (ImportError, OSError):  # a Pillow without FreeType
        return _plain(size)
