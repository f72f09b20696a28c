"""What every reader of annotations yields, whatever its format, and the account of what becomes of it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from learner.data.coco_shapes import Box
from learner.data.smells import Smells
from shared.errors import DataError

LeftOut = Literal[
    "crowds",
    "of images that are not listed",
    "of images without a size",
    "of categories that are not listed",
    "of categories without a name",
    "of shapes that have no box",
    "of tracks through a video",
    "without a box or a segmentation",
    "with a broken box",
    "without extent inside the image",
]
"""Why an annotation is no object."""

_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Annotation:
    """An object as its file has it. What is missing or broken is found out when it is converted.

    `name` is what messages call it. `box` is as `box_of` and `box_between` make it, `segmentation` as COCO has it.
    `broken` shows the box where there is one that is none. `fault` is why the reader itself leaves the object out, and
    `detail` the end of the message then.

        Annotation("labels/a.txt:3", "black cat", (70.0, 149.0, 263.0, 339.0))
    """

    name: str
    desc: str
    box: Box | None = None
    segmentation: Any = None
    broken: str = ""
    fault: LeftOut | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """An image with its objects.

    `name` is what messages call it, `image_id` goes into the metadata of its record, `size` is in px as it is written,
    None where it is not. Coordinates are px, or with `in_shares` shares of the width and the height.

        AnnotatedImage("a.jpg", Path("images/a.jpg"), "a.jpg", (640, 480), [Annotation(…)])
    """

    name: str
    path: Path
    image_id: Any
    size: tuple[int, int] | None
    annotations: Sequence[Annotation]
    in_shares: bool = False


@dataclass
class Conversion:
    """What became of the annotations; filled as they are read. `examples` has the first of each reason.

    `lost` names files and images that could not be converted, `first_images` the first that were listed.
    """

    images: int = 0
    annotations: int = 0
    objects: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    examples: dict[LeftOut, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    first_images: list[str] = field(default_factory=list)
    clipped: int = 0
    boxes_of_segmentations: int = 0
    boxes_for_polygons: int = 0
    sizes_of_files: int = 0
    other_sizes: int = 0
    first_other_size: str = ""
    unlabelled: int = 0
    listed_again: int = 0
    smells: Smells = field(default_factory=Smells)

    def leave_out(self, reason: LeftOut, name: str, detail: str = "") -> None:
        """Count an annotation of an image that becomes no object."""
        self.left_out[reason] += 1
        self.examples.setdefault(reason, f"{name}{detail}")

    def leave_out_alone(self, reason: LeftOut, name: str, detail: str = "") -> None:
        """The same for one that belongs to no image."""
        self.annotations += 1
        self.leave_out(reason, name, detail)


class Dataset(NamedTuple):
    """Annotations that were found.

    `images` reads them anew at each call, and tells the account what it cannot yield. `num_images` is None where nobody
    knows before; so are `classes`, where the annotations do not list them but by their objects.
    """

    images: Callable[[Conversion], Iterator[AnnotatedImage]]
    num_images: int | None = None
    classes: Sequence[str] | None = None

    def class_list(self) -> list[str]:
        """The names of all classes, each once: in the order of the list, or sorted where there is none.

        Raises DataError when nothing has a name.
        """
        names = self.classes
        if names is None:
            images = self.images(Conversion())
            names = sorted({each.desc for image in images for each in image.annotations if each.fault is None})
        found = [name for name in dict.fromkeys(names) if name]
        if not found:
            raise DataError("--classes: there is no class with a name")
        return found


def desc_of(category: Any) -> str:
    """A category's name as words, empty for one that has none; LVIS joins words by underscores."""
    if not isinstance(category, str):
        return ""
    words = " ".join(_UNSPEAKABLE.sub(" ", category.replace("_", " ")).split())
    return words.encode("utf-8", "ignore").decode("utf-8")  # half a character, as a broken escape leaves it
