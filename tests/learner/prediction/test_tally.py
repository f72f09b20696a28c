"""What is told of predictions."""

import io

import pytest
from rich.console import Console

from learner.detection.prediction import Prediction
from learner.detection.record import Record
from learner.evaluation.coco_ap import ScoredImage
from learner.prediction.tally import MOST_ROWS, Tally


def image_of(*found: tuple[str, float]) -> ScoredImage:
    predictions = tuple(Prediction(1, desc, "bbox_2d", (0, 0, 500, 999), (0, 1, 2, 3)) for desc, _ in found)
    record = Record("picture:1", ("a.png",), 200, 100, ())
    return ScoredImage(record, predictions, tuple(score for _, score in found))


def shown(tally: Tally, width: int = 100) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    tally.show(console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_one_picture_is_told_object_by_object() -> None:
    tally = Tally()
    tally.add(image_of(("cat", 0.25), ("dog", 0.75)))
    assert shown(tally) == [["dog", "0.750", "0", "0", "100", "100"], ["cat", "0.250", "0", "0", "100", "100"]]


def test_several_pictures_are_told_name_by_name_the_wanted_ones_always() -> None:
    tally = Tally(["hen", "dog", "hen"])
    tally.add(image_of(("cat", 0.25), ("dog", 0.75), ("cat", 0.75)))
    tally.add(image_of(("cat", 0.5)))
    assert shown(tally) == [
        ["cat", "3", "0.500", "0.750", "2"], ["dog", "1", "0.750", "0.750", "1"], ["hen", "0", "–", "–", "0"],
    ]  # fmt: skip
    assert (tally.classes, tally.num_pictures, tally.num_objects) == (("hen", "dog"), 2, 4)


@pytest.mark.parametrize("num_pictures", [0, 1, 2])
def test_nothing_found_is_no_table(num_pictures: int) -> None:
    tally = Tally()
    for _ in range(num_pictures):
        tally.add(image_of())
    assert shown(tally) == []


def test_many_names_are_counted() -> None:
    tally = Tally()
    for _ in range(2):
        tally.add(image_of(*((f"name {number}", 0.5) for number in range(MOST_ROWS + 5))))
    assert len(shown(tally)) == MOST_ROWS
