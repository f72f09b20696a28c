"""`python -m learner.data.from_coco ANNOTATIONS.json --images DIR --out FILE.jsonl`: COCO and LVIS JSON to JSONL."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from learner.data.check import special_texts_of_families
from learner.data.coco import Conversion, convert, read_annotations
from learner.detection.record_rules import BrokenRule, Changes, Rules
from shared.config.paths import user_path
from shared.console import run_main
from shared.errors import DataError
from shared.whole_file import whole_file

MOST_REFUSED = 20
"""Records that the check refuses, of which so many are printed."""


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
    }
    yield from (f"  changed     {count} {what}" for what, count in changes.items() if count)
    yield from (f"  warning: {warning}" for warning in conversion.smells.warnings())
    yield from (f"  error: {reason}" for reason in refused[:MOST_REFUSED])
    if refused:
        more = f", {len(refused) - MOST_REFUSED} more than these" if len(refused) > MOST_REFUSED else ""
        yield f"  {len(refused)} records will be refused by `boxloop data check` and by training{more}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="boxloop data from-coco", description="Convert COCO or LVIS annotations.")
    parser.add_argument("annotations", type=user_path, metavar="ANNOTATIONS.json")
    parser.add_argument("--images", type=user_path, required=True, metavar="DIR", help="folder of the image files")
    parser.add_argument("--out", type=user_path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--geometry", choices=("bbox_2d", "poly"), default="bbox_2d")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 when records will be refused, as they are written; 2 when nothing was written."""
    options = parser().parse_args(arguments)
    conversion = Conversion()
    try:
        content = read_annotations(options.annotations.read_bytes())
        images, folder = options.images.resolve(), options.out.resolve().parent
        if not images.is_dir():
            raise DataError(f"--images {options.images} is no folder")
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(options.out) as lines:
            records = convert(content, images, folder, options.geometry, conversion)
            refused = list(write_records(lines, records, folder))
    except BrokenPipeError:
        raise
    except (OSError, DataError) as error:
        print(f"{options.annotations}: {error}", file=sys.stderr)
        return 2
    console = sys.stdout if options.out.is_file() else sys.stderr  # the records may have gone to /dev/stdout
    print(*summary_lines(options.out, conversion, refused), sep="\n", file=console)
    return 1 if refused else 0


if __name__ == "__main__":
    run_main(main)
