"""Square tiles of large pictures: `python -m learner.data.tiles --from trees.jsonl --out DIR`.

The right part of each picture is held out: its tiles, side by side, are `val.jsonl`. Tiles of the rest, anywhere,
turned and mirrored at random, are `train.jsonl`, and `train_annotated.jsonl` as annotators would write it. An object
belongs to a tile that shows half of it or more.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from learner.data.annotators import Annotators
from shared.config.paths import user_path

HELD_OUT = 0.3
"""Of each picture's width."""
FEWEST_SHOWN = 0.5
"""Of an object's area."""
SYMMETRIES = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
Line = dict[str, Any]
Box = tuple[float, float, float, float]
Split = Literal["train", "val"]


@dataclass(frozen=True)
class Window:
    """A square of a picture, in px of that, and how it is turned afterwards."""

    left: int
    top: int
    side: int
    symmetry: Image.Transpose | None = None

    def cut(self, image: Image.Image, size: int) -> Image.Image:
        """The tile, `size` px wide and high."""
        right, bottom = self.left + self.side, self.top + self.side
        tile = image.resize((size, size), Image.Resampling.BILINEAR, box=(self.left, self.top, right, bottom))
        return tile if self.symmetry is None else tile.transpose(self.symmetry)

    def place(self, box: Sequence[float], size: int) -> Box | None:
        """Where a box of the picture lies in the tile, in px of that; None for one that it shows less than half of."""
        x1, x2 = (min(max(0.0, value - self.left), self.side) for value in (box[0], box[2]))
        y1, y2 = (min(max(0.0, value - self.top), self.side) for value in (box[1], box[3]))
        if (x2 - x1) * (y2 - y1) < FEWEST_SHOWN * (box[2] - box[0]) * (box[3] - box[1]):
            return None
        scale = size / self.side
        return turned((x1 * scale, y1 * scale, x2 * scale, y2 * scale), size, self.symmetry)


def turned(box: Box, size: int, symmetry: Image.Transpose | None) -> Box:
    """Where a box lies in a square picture of `size` px once that is turned, as Pillow turns it."""
    x1, y1, x2, y2 = box
    left, top, right, bottom = x1, y1, x2, y2
    match symmetry:
        case Image.Transpose.FLIP_LEFT_RIGHT:
            left, right = size - x2, size - x1
        case Image.Transpose.FLIP_TOP_BOTTOM:
            top, bottom = size - y2, size - y1
        case Image.Transpose.ROTATE_90:
            left, top, right, bottom = y1, size - x2, y2, size - x1
        case Image.Transpose.ROTATE_180:
            left, top, right, bottom = size - x2, size - y2, size - x1, size - y1
        case Image.Transpose.ROTATE_270:
            left, top, right, bottom = size - y2, x1, size - y1, x2
        case Image.Transpose.TRANSPOSE:
            left, top, right, bottom = y1, x1, y2, x2
        case Image.Transpose.TRANSVERSE:
            left, top, right, bottom = size - y2, size - x2, size - y1, size - x1
    return left, top, right, bottom


@dataclass(frozen=True)
class TileSet:
    """Pictures of a JSONL, its folder, and the tiles that are made of them: `side` px of a picture, `size` px large."""

    folder: Path
    lines: Sequence[Line]
    side: int
    size: int
    seed: int

    def train(self, count: int) -> Iterator[tuple[Image.Image, Line]]:
        """`count` tiles of the parts that are not held out; tile k depends on the seed and k alone."""
        usable = [line for line in self.lines if self._border(line) >= self.side and line["height"] >= self.side]
        areas = [self._border(line) * line["height"] for line in usable]
        for number in range(count):
            chooser = random.Random(f"{self.seed}/tile/{number}")
            (line,) = chooser.choices(usable, areas)
            left = chooser.randint(0, self._border(line) - self.side)
            top = chooser.randint(0, line["height"] - self.side)
            yield self._tile(line, Window(left, top, self.side, chooser.choice(SYMMETRIES)), f"train/{number:06d}.png")

    def val(self) -> Iterator[tuple[Image.Image, Line]]:
        """All tiles of the held-out parts, side by side; what is left over at the edges is not used."""
        number = 0
        for line in self.lines:
            for top in range(0, line["height"] - self.side + 1, self.side):
                for left in range(self._border(line), line["width"] - self.side + 1, self.side):
                    yield self._tile(line, Window(left, top, self.side), f"val/{number:06d}.png")
                    number += 1

    def _border(self, line: Line) -> int:
        width: int = line["width"]
        return round(width * (1 - HELD_OUT))

    def _tile(self, line: Line, window: Window, name: str) -> tuple[Image.Image, Line]:
        placed = [(item["desc"], window.place(item["bbox_2d"], self.size)) for item in line["objects"]]
        objects = [{"desc": desc, "bbox_2d": [round(value, 1) for value in box]} for desc, box in placed if box]
        objects.sort(key=lambda item: (item["bbox_2d"][1], item["bbox_2d"][0]))
        tile = {"images": [f"images/{name}"], "width": self.size, "height": self.size, "objects": objects}
        return window.cut(_opened(self.folder / line["images"][0]), self.size), tile


@lru_cache(maxsize=4)
def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def write_tiles(tiles: Iterator[tuple[Image.Image, Line]], directory: Path) -> Iterator[Line]:
    """Write each tile's picture and yield its line."""
    for image, line in tiles:
        file = directory / line["images"][0]
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, compress_level=1)
        yield line


def main() -> None:
    from rich.progress import track

    parser = argparse.ArgumentParser(prog="python -m learner.data.tiles", description="Cut tiles of large pictures.")
    parser.add_argument("--from", dest="source", type=user_path, required=True, help="JSONL of the large pictures")
    parser.add_argument("--out", type=user_path, required=True, help="folder of the data set")
    parser.add_argument("--train", type=int, default=8192, help="training tiles")
    parser.add_argument("--side", type=int, default=192, help="px of a picture that a tile shows")
    parser.add_argument("--size", type=int, default=128, help="px of a tile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--annotate", type=float, default=1.0, help="chance of an object in train_annotated.jsonl")
    parser.add_argument("--jitter", type=float, default=0.0, help="share of a side that its corners are off by at most")
    chosen = parser.parse_args()
    if not 0 < chosen.annotate <= 1:
        parser.error(f"--annotate must be in (0, 1], got {chosen.annotate}")
    lines = [json.loads(line) for line in chosen.source.read_text(encoding="utf-8").splitlines()]
    tiles = TileSet(chosen.source.parent, lines, chosen.side, chosen.size, chosen.seed)
    train = list(track(write_tiles(tiles.train(chosen.train), chosen.out), "cutting tiles", total=chosen.train))
    annotators = Annotators(chosen.annotate, chosen.jitter)
    written = {
        "train": train,
        "train_annotated": [annotators.annotate(line, chosen.seed) for line in train],
        "val": list(write_tiles(tiles.val(), chosen.out)),
    }
    for name, of_split in written.items():
        text = "".join(json.dumps(line) + "\n" for line in of_split)
        (chosen.out / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
