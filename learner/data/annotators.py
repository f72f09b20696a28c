"""People who annotate as people do: they leave objects out, and corners are a little off."""

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Annotators:
    """They see each object with `probability`, whatever the others; corners are off by at most `jitter` of a side."""

    probability: float = 1.0
    jitter: float = 0.0

    def annotate(self, line: dict[str, Any], seed: int) -> dict[str, Any]:
        """The line of a JSONL as they would have written it; a record may be left without an object."""
        chooser = random.Random(f"{seed}/annotate/{line['images'][0]}")
        size = (line["width"], line["height"])
        seen = [item for item in line["objects"] if chooser.random() < self.probability]
        return {**line, "objects": [{**item, "bbox_2d": self._placed(item["bbox_2d"], size, chooser)} for item in seen]}

    def _placed(self, box: list[float], size: tuple[int, int], chooser: random.Random) -> list[float]:
        x1, y1, x2, y2 = box
        off = [chooser.uniform(-self.jitter, self.jitter) * side for side in (x2 - x1, y2 - y1) * 2]
        return [min(most, max(0.0, round(value + by, 1))) for value, by, most in zip(box, off, size * 2, strict=True)]
