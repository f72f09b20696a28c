"""Annotations to a JSONL file, whatever their format: records, what is said about them, and the exit code."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from learner.data.annotations import Conversion, Dataset
from learner.data.check import special_texts_of_families
from learner.data.conversion import Geometry, records_of
from learner.data.progress import with_progress
from learner.detection.record_rules import BrokenRule, Changes, Rules
from shared.errors import DataError
from shared.whole_file import whole_file

MOST_REFUSED = 20
"""Records that the check refuses, and files that cannot be converted, of which so many are printed."""


def write_dataset(dataset: Dataset, source: Path, out: Path, geometry: Geometry, *, with_classes: bool = False) -> int:
    """Convert annotations to the JSONL file `out`, and say what became of them.

    Returns 0, or 1 when something could not be converted or will be refused, as the rest is written. Raises OSError and
    DataError when nothing is written.
    """
    conversion, folder = Conversion(), out.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    classes = dataset.class_list() if with_classes else ()
    images = with_progress(f"converting {source.name}", dataset.images(conversion), dataset.num_images)
    with whole_file(out) as lines:
        refused = list(write_records(lines, records_of(images, folder, geometry, conversion, classes), folder))
    console = sys.stdout if out.is_file() else sys.stderr  # the records may have gone to /dev/stdout
    print(*summary_lines(out, conversion, refused), sep="\n", file=console)
    return 1 if refused or conversion.lost else 0


def exit_code_of(place: Path, convert: Callable[[], int]) -> int:
    """What a conversion returns; 2, and one message about `place`, when it ends before anything is written."""
    try:
        return convert()
    except BrokenPipeError:
        raise
    except (OSError, DataError) as error:
        print(f"{place}: {error}", file=sys.stderr)
        return 2


def write_records(lines: BinaryIO, records: Iterable[dict[str, Any]], folder: Path) -> Iterator[str]:
    """Write a JSONL file of `folder`, and yield what `boxloop data check --headers` will say against its lines."""
    rules = Rules(special_texts=special_texts_of_families())
    for number, record in enumerate(records, 1):
        line = orjson.dumps(record)
        lines.write(line + b"\n")
        try:
            rules.check(line, folder, Changes())
        except BrokenRule as broken:
            where = "" if broken.object_index is None else f" object {broken.object_index}:"
            yield f"line {number}:{where} {broken.reason}"


def summary_lines(out: Path, conversion: Conversion, refused: Sequence[str]) -> Iterator[str]:
    """What is said about a conversion; annotations in are objects out and those left out."""
    left_out = conversion.left_out.total()
    yield (
        f"{out}: {conversion.images} records, {conversion.objects} objects of {conversion.annotations} annotations, "
        f"{left_out} left out"
    )
    for reason, count in conversion.left_out.items():
        yield f"  left out    {count} {reason}, the first: {conversion.examples[reason]}"
    changes = {
        "boxes clipped to their images": conversion.clipped,
        "boxes taken from segmentations": conversion.boxes_of_segmentations,
        "boxes for want of a single whole polygon": conversion.boxes_for_polygons,
        "sizes taken from the image files": conversion.sizes_of_files,
        f"sizes that the image files contradict, the first: {conversion.first_other_size}": conversion.other_sizes,
        "images listed again, which are written once": conversion.listed_again,
        "images without annotations of their own, written without objects": conversion.unlabelled,
    }
    yield from (f"  changed     {count} {what}" for what, count in changes.items() if count)
    yield from (f"  warning: {warning}" for warning in conversion.smells.warnings())
    yield from _shortened(conversion.lost, "files or images could not be converted")
    yield from _shortened(refused, "records will be refused by `boxloop data check` and by training")


def _shortened(errors: Sequence[str], what: str) -> Iterator[str]:
    yield from (f"  error: {error}" for error in errors[:MOST_REFUSED])
    if errors:
        more = f", {len(errors) - MOST_REFUSED} more than these" if len(errors) > MOST_REFUSED else ""
        yield f"  {len(errors)} {what}{more}"
