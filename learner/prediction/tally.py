"""What was predicted, counted by name, and shown as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from learner.evaluation.coco_ap import ScoredImage
from learner.evaluation.coco_results import shape_of
from learner.reporting.console_tables import print_rows

MOST_ROWS = 20


@dataclass
class Named:
    """The objects of one name: how many, in how many pictures, and their scores added up."""

    objects: int = 0
    pictures: int = 0
    score_sum: float = 0.0
    highest: float = 0.0

    @property
    def mean_score(self) -> float | None:
        return self.score_sum / self.objects if self.objects else None


class Tally:
    """Counts pictures as they come; `classes` are there from the start, whether they are found or not."""

    def __init__(self, classes: Sequence[str] = ()) -> None:
        self.classes = tuple(dict.fromkeys(classes))
        self.num_pictures = self.num_failed = 0
        self._by_name = {name: Named() for name in self.classes}
        self._only: ScoredImage | None = None

    @property
    def num_objects(self) -> int:
        return sum(each.objects for each in self._by_name.values())

    def add(self, image: ScoredImage) -> None:
        """Count a picture's predictions."""
        self.num_pictures += 1
        self._only = image if self.num_pictures == 1 else None
        for prediction, score in zip(image.predictions, image.scores, strict=True):
            named = self._by_name.setdefault(prediction.desc, Named())
            named.objects += 1
            named.score_sum += score
            named.highest = max(named.highest, score)
        for name in {prediction.desc for prediction in image.predictions}:
            self._by_name[name].pictures += 1

    def show(self, console: Console) -> None:
        """Print the objects of a single picture, or the names in several."""
        if self._only is not None:
            rows, title = object_rows(self._only), "Objects, boxes in px"
        else:
            rows, title = self._name_rows(), "By name"
        if rows:
            left = len(rows) - MOST_ROWS
            print_rows(rows[:MOST_ROWS], console, title=title, caption=f"and {left} more" if left > 0 else None)

    def _name_rows(self) -> list[dict[str, str]]:
        most_first = sorted(self._by_name.items(), key=lambda each: (-each[1].objects, each[0]))
        return [
            {
                "name": name,
                "objects": str(named.objects),
                "mean score": "–" if named.mean_score is None else f"{named.mean_score:.3f}",
                "highest score": f"{named.highest:.3f}" if named.objects else "–",
                "pictures": str(named.pictures),
            }
            for name, named in most_first
        ]


def object_rows(image: ScoredImage) -> list[dict[str, str]]:
    """A row for each object of a picture, the surest first."""
    surest_first = sorted(zip(image.scores, image.predictions, strict=True), key=lambda each: -each[0])
    rows = []
    for score, prediction in surest_first:
        box = shape_of(prediction, image.record)["bbox"]
        corner = dict(zip(("x", "y", "width", "height"), (f"{value:.0f}" for value in box), strict=True))
        rows.append({"name": prediction.desc, "score": f"{score:.3f}", **corner})
    return rows
