"""Images on their way into the model: read once, oriented, resized once, cut into patches."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from PIL import Image

from learner.detection.record import Record
from learner.types import EncodedImage, Grid
from shared.errors import ConfigError, DataError
from shared.families.facts import FamilyFacts
from shared.families.table import facts_in
from shared.images import BadImage, OpenedImage, open_image

Resize = Callable[[int, int, int, int, int], tuple[int, int]]
"""As `FamilyFacts.image_resize`."""


@dataclass(frozen=True)
class PixelBounds:
    """Smallest and largest image in pixels, both inclusive."""

    min_pixels: int
    max_pixels: int


class ImageReader:
    """Reads records' images for one checkpoint. Thread-safe: nothing changes after construction."""

    def __init__(self, facts: FamilyFacts, processor: Any, bounds: PixelBounds) -> None:
        self._processor = processor
        self._resize: Resize = resolve_name(facts.image_resize)
        self._bounds = bounds
        self.placeholder = facts.image_placeholder
        self.merge_size: int = processor.merge_size
        self._side: int = processor.patch_size * processor.merge_size

    @classmethod
    def from_checkpoint(
        cls, folder: Path, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> "ImageReader":
        """Load the image processor of a checkpoint; bounds that are not given are the processor's own.

        Raises ConfigError for a checkpoint of no known family, and when the bounds are wider than the processor's: a
        rollout server that loads the same checkpoint would resize such an image a second time.
        """
        facts = facts_in(folder)
        processor = resolve_name(facts.image_processor).from_pretrained(folder)
        own = PixelBounds(processor.size["shortest_edge"], processor.size["longest_edge"])
        chosen = PixelBounds(
            own.min_pixels if min_pixels is None else min_pixels, own.max_pixels if max_pixels is None else max_pixels
        )
        if not own.min_pixels <= chosen.min_pixels <= chosen.max_pixels <= own.max_pixels:
            raise ConfigError(
                f"template.min_pixels {chosen.min_pixels} … template.max_pixels {chosen.max_pixels} must lie within "
                f"{own.min_pixels} … {own.max_pixels}, the size in preprocessor_config.json of {folder}; "
                "narrow them, or widen that file for learner and servers alike"
            )
        return cls(facts, processor, chosen)

    def read(self, record: Record) -> EncodedImage:
        """Read a record's image; blocks. Raises DataError when it cannot be used."""
        file, opened = read_image(record)
        size = self.resized(record.width, record.height)
        if opened.image.size != size:
            image = opened.image.resize(size, self._processor.resample)
            return self._encoded(image, _png(image))
        return self._encoded(opened.image, file if opened.is_as_stored else _png(opened.image))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in px that an image is resized to, which resizing again leaves as they are.

        Raises DataError when the bounds hold no such size.
        """
        size = height, width
        for _ in range(8):
            try:
                again = self._resize(*size, self._side, self._bounds.min_pixels, self._bounds.max_pixels)
            except ValueError as error:
                raise DataError(f"an image of {width}x{height} px cannot be resized: {error}") from error
            if again == size:
                return again[1], again[0]
            size = again
        raise DataError(
            f"an image of {width}x{height} px has no size in multiples of {self._side} px between template.min_pixels "
            f"{self._bounds.min_pixels} and template.max_pixels {self._bounds.max_pixels}; widen them"
        )

    def grid_of(self, width: int, height: int) -> Grid:
        """The grid (t, h, w) in patches of an image of this size in px, without reading it."""
        resized_width, resized_height = self.resized(width, height)
        patch_size = self._processor.patch_size
        return 1, resized_height // patch_size, resized_width // patch_size

    def num_tokens(self, grid: Grid) -> int:
        """How many placeholder tokens stand for an image with this grid."""
        return grid[0] * grid[1] * grid[2] // self.merge_size**2

    def _encoded(self, image: Image.Image, png: bytes) -> EncodedImage:
        features = self._processor(images=[image], do_resize=False, return_tensors="np")
        pixel_values = np.ascontiguousarray(features["pixel_values"], dtype=np.float32)
        t, h, w = features["image_grid_thw"][0].tolist()
        return EncodedImage(pixel_values, (t, h, w), png)


def read_image(record: Record) -> tuple[bytes, OpenedImage]:
    """A record's image file and what it holds. Raises DataError, which names both, for one that cannot be used."""
    path = Path(record.images[0])
    try:
        file = path.read_bytes()
        opened = open_image(file)
    except (OSError, BadImage) as error:
        raise DataError(f"{record.record_id}: {path} cannot be read: {error}") from error
    width, height = opened.image.size
    if (width, height) != (record.width, record.height):
        raise DataError(
            f"{record.record_id}: {path} is {width}x{height} px, but the record says {record.width}x{record.height}"
        )
    return file, opened


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
