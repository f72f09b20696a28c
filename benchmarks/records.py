"""`python -m benchmarks.records`: the records of a file, as a run reads them before its first step.

`read` is all that the start does with the lines of `train_jsonl` (check, index, leave out what no pack holds) against
benchmarks/reference/plain_reading.py, which parses each line and applies the same rules once. Neither side opens image
files, whose headers cost the same on both.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import orjson

from benchmarks.measure import compared, print_measure, seconds_of
from benchmarks.reference import plain_reading
from learner.data.encoding import Encoder
from learner.data.images import ImageReader
from learner.data.lengths import without_long_records
from learner.data.records import INDEX, Reading, RecordSource
from learner.detection.record import ReadCounts
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.model.tiny import build_tiny

NUM_RECORDS = 20_000
NUM_OBJECTS = 12
CAPACITY = 12_000
COMMON_SIZES = ((640, 480), (480, 640), (640, 427), (500, 375))
ADJECTIVES = ("black", "red", "small", "wooden", "striped", "old", "shiny", "green", "broken", "grüne")
NOUNS = ("cat", "chair", "traffic light", "bottle", "person", "bowl", "remote control", "vase", '12" record', "猫")


def write_records(path: Path, num_records: int, rng: random.Random) -> None:
    """Boxes in px to two digits; one in 200 reaches over the edge, one in 500 has no extent in bins."""
    with path.open("wb") as file:
        for number in range(num_records):
            size = rng.choice(COMMON_SIZES) if rng.random() < 0.9 else (rng.randint(300, 640), rng.randint(300, 640))
            objects = [made_object(*size, rng) for _ in range(NUM_OBJECTS)]
            line = {"images": [f"images/{number:012d}.jpg"], "width": size[0], "height": size[1], "objects": objects}
            file.write(orjson.dumps(line) + b"\n")


def made_object(width: int, height: int, rng: random.Random) -> dict[str, object]:
    """An object anywhere in an image."""
    x1, y1 = rng.uniform(0, width - 40), rng.uniform(0, height - 40)
    x2 = x1 + 0.2 if rng.random() < 1 / 500 else rng.uniform(x1 + 4, width)
    y2 = height + 0.5 if rng.random() < 1 / 200 else rng.uniform(y1 + 4, height)
    box = [round(value, 2) for value in (x1, y1, x2, y2)]
    return {"desc": f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}", "bbox_2d": box}


class Work:
    """Both ways to read one file."""

    def __init__(self, folder: Path, path: Path) -> None:
        tokenizer = load_tokenizer(str(folder))
        self.vocabulary = CoordinateVocabulary.from_tokenizer(tokenizer)
        self._encoder = Encoder(tokenizer, ImageReader.from_checkpoint(folder))
        self._path = path
        self._reading = Reading(special_texts=self.vocabulary.special_texts, check_images=False)

    def read(self) -> tuple[RecordSource, ReadCounts]:
        source, counts = RecordSource.opened(self._path, self._reading, seed=0)
        return without_long_records(source, self._encoder, self.vocabulary, CAPACITY, "error").source, counts

    def read_plainly(self) -> plain_reading.Counts:
        return plain_reading.read(self._path, self.vocabulary.special_texts)

    def parse(self) -> None:
        with self._path.open("rb") as lines:
            for line in lines:
                orjson.loads(line)

    def check(self) -> None:
        """The baseline does the same work."""
        (source, ours), theirs = self.read(), self.read_plainly()
        assert source.num_records == ours.records == theirs.records == NUM_RECORDS
        assert (ours.widened, ours.clamped) == (theirs.widened, theirs.clamped)
        assert min(ours.widened, ours.clamped) > 0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.records", description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_tiny(folder, seed=0)
        write_records(folder / "train.jsonl", NUM_RECORDS, random.Random(0))
        work = Work(folder, folder / "train.jsonl")
        work.check()
        read = compared(work.read, work.read_plainly, options.runs, process_time)
        parse_s = seconds_of(work.parse, process_time)
    print_measure(
        "records",
        "read",
        read.ratio,
        "<= 1.15",
        "one orjson.loads and the same rules once for each line, nothing kept",
        read.runs,
        num_records=NUM_RECORDS,
        objects_per_record=NUM_OBJECTS,
        ours_us_per_record=round(read.ours_s / NUM_RECORDS * 1e6, 1),
        baseline_us_per_record=round(read.baseline_s / NUM_RECORDS * 1e6, 1),
        loads_us_per_record=round(parse_s / NUM_RECORDS * 1e6, 1),
        kept_bytes_per_record=INDEX.itemsize,
    )


if __name__ == "__main__":
    main()
