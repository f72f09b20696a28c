"""The synthetic data set: a few coloured shapes on a light background, `python -m learner.data.shapes --out DIR`.

It writes `images/{train,val}/*.png`, `train.jsonl` and `val.jsonl`, `train_single.jsonl` (the records of train.jsonl
with one object) and, when asked, `train_partial.jsonl`: the same images with objects left out of the annotations.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

from learner.data.annotators import Annotators
from shared.config.paths import user_path

COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 160, 60),
    "blue": (40, 90, 220),
    "yellow": (235, 190, 20),
    "purple": (140, 60, 180),
    "black": (40, 40, 45),
}
FORMS = ("circle", "square", "triangle")
CANVAS_PX = 128
MAX_SHAPES = 6
SMALLEST_SIDE, LARGEST_SIDE = 0.16, 0.36
"""Of the canvas."""
MAX_IOU = 0.02
_CHUNK = 128

Split = Literal["train", "val"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shape:
    """A shape and its bounding box (x1, y1, x2, y2) in px; x2 and y2 are the first px outside."""

    colour: str
    form: str
    box: Box

    @property
    def desc(self) -> str:
        return f"{self.colour} {self.form}"


@dataclass(frozen=True)
class Scene:
    """What one image shows, in raster order, and the colour behind it."""

    background: tuple[int, int, int]
    shapes: tuple[Shape, ...]


def random_scene(chooser: random.Random) -> Scene:
    """1 to 6 shapes that hardly touch each other."""
    background = tuple(chooser.randint(225, 255) for _ in range(3))
    boxes: list[Box] = []
    num_shapes = chooser.randint(1, MAX_SHAPES)
    while len(boxes) < num_shapes:
        box = _random_box(chooser)
        if all(_iou(box, other) < MAX_IOU for other in boxes):
            boxes.append(box)
    boxes.sort(key=lambda box: (box[1], box[0]))
    shapes = tuple(Shape(chooser.choice(list(COLOURS)), chooser.choice(FORMS), box) for box in boxes)
    return Scene(background, shapes)  # type: ignore[arg-type]


def draw_scene(scene: Scene) -> Image.Image:
    """Paint a scene; each shape touches all four sides of its box."""
    image = Image.new("RGB", (CANVAS_PX, CANVAS_PX), scene.background)
    canvas = ImageDraw.Draw(image)
    for shape in scene.shapes:
        x1, y1, x2, y2 = shape.box[0], shape.box[1], shape.box[2] - 1, shape.box[3] - 1
        fill = COLOURS[shape.colour]
        match shape.form:
            case "circle":
                canvas.ellipse((x1, y1, x2, y2), fill)
            case "square":
                canvas.rectangle((x1, y1, x2, y2), fill)
            case "triangle":
                canvas.polygon([((x1 + x2) / 2, y1), (x1, y2), (x2, y2)], fill)
    return image


def render_shapes(
    directory: Path,
    *,
    train: int,
    val: int,
    seed: int,
    keep_fraction: float | None = None,
    annotators: Annotators | None = None,
    num_workers: int | None = None,
) -> Iterator[int]:
    """Write the data set and yield the number of images rendered since the last value.

    Image k of a split depends on `seed`, the split and k alone, whatever the number of images and workers.
    `keep_fraction` is the share of objects that stay in `train_partial.jsonl`, at least one in each record;
    `annotators` write `train_annotated.jsonl`.
    """
    with ProcessPoolExecutor(num_workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        lines: dict[Split, list[dict[str, Any]]] = {"train": [], "val": []}
        splits: tuple[tuple[Split, int], ...] = (("train", train), ("val", val))
        for split, num_images in splits:
            (directory / "images" / split).mkdir(parents=True, exist_ok=True)
            chunks = [range(start, min(start + _CHUNK, num_images)) for start in range(0, num_images, _CHUNK)]
            for chunk in pool.map(partial(_render_chunk, directory, split, seed), chunks):
                lines[split] += chunk
                yield len(chunk)
    _write_jsonl(directory / "train.jsonl", lines["train"])
    _write_jsonl(directory / "val.jsonl", lines["val"])
    _write_jsonl(directory / "train_single.jsonl", [line for line in lines["train"] if len(line["objects"]) == 1])
    if keep_fraction is not None:
        partly = [_with_fewer(line, keep_fraction, seed) for line in lines["train"]]
        _write_jsonl(directory / "train_partial.jsonl", partly)
    if annotators is not None:
        _write_jsonl(directory / "train_annotated.jsonl", [annotators.annotate(line, seed) for line in lines["train"]])


def _random_box(chooser: random.Random) -> Box:
    side = round(chooser.uniform(SMALLEST_SIDE, LARGEST_SIDE) * CANVAS_PX)
    x, y = chooser.randint(0, CANVAS_PX - side), chooser.randint(0, CANVAS_PX - side)
    return x, y, x + side, y + side


def _iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _render_chunk(directory: Path, split: Split, seed: int, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Render some images in a worker process and return their JSONL lines."""
    lines = []
    for number in numbers:
        scene = random_scene(random.Random(f"{seed}/{split}/{number}"))
        path = f"images/{split}/{number:06d}.png"
        draw_scene(scene).save(directory / path, compress_level=1)
        objects = [{"desc": shape.desc, "bbox_2d": list(shape.box)} for shape in scene.shapes]
        lines.append({"images": [path], "width": CANVAS_PX, "height": CANVAS_PX, "objects": objects})
    return lines


def _with_fewer(line: dict[str, Any], keep_fraction: float, seed: int) -> dict[str, Any]:
    """The line with a random choice of its objects, order kept."""
    chooser = random.Random(f"{seed}/keep/{line['images'][0]}")
    objects = line["objects"]
    kept = set(chooser.sample(range(len(objects)), max(1, round(keep_fraction * len(objects)))))
    return {**line, "objects": [item for place, item in enumerate(objects) if place in kept]}


def _write_jsonl(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    from rich.progress import track

    parser = argparse.ArgumentParser(prog="python -m learner.data.shapes", description="Render the shapes data set.")
    parser.add_argument("--out", type=user_path, required=True, help="folder of the data set")
    parser.add_argument("--train", type=int, default=8192, help="training images")
    parser.add_argument("--val", type=int, default=200, help="validation images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-fraction", type=float, help="also write train_partial.jsonl with this share of objects")
    parser.add_argument("--annotate", type=float, help="also write train_annotated.jsonl, each object with this chance")
    parser.add_argument("--jitter", type=float, default=0.0, help="share of a side that its corners are off by at most")
    chosen = parser.parse_args()
    if chosen.keep_fraction is not None and not 0 < chosen.keep_fraction <= 1:
        parser.error(f"--keep-fraction must be in (0, 1], got {chosen.keep_fraction}")
    if chosen.annotate is not None and not 0 < chosen.annotate <= 1:
        parser.error(f"--annotate must be in (0, 1], got {chosen.annotate}")
    rendered = render_shapes(
        chosen.out,
        train=chosen.train,
        val=chosen.val,
        seed=chosen.seed,
        keep_fraction=chosen.keep_fraction,
        annotators=None if chosen.annotate is None else Annotators(chosen.annotate, chosen.jitter),
    )
    images = (image for count in rendered for image in range(count))
    for _ in track(images, description="rendering", total=chosen.train + chosen.val):
        pass


if __name__ == "__main__":
    main()
