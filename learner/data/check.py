"""`python -m learner.data.check FILE…`: reads JSONL files against the data contract and says what is in them."""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from learner.detection.record import ReadCounts, Record, read_records
from learner.detection.record_rules import CoordinateSpace

PERCENTILES = (0, 50, 90, 99, 100)


@dataclass
class Summary:
    """What good records hold: sizes in px, objects per record."""

    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    object_counts: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    descs: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        self.widths.append(record.width)
        self.heights.append(record.height)
        self.object_counts.append(len(record.objects))
        self.kinds.update(item.kind for item in record.objects)
        self.descs.update(item.desc for item in record.objects)


def check_file(
    path: Path,
    *,
    coordinate_space: CoordinateSpace = "px",
    special_texts: Collection[str] = (),
    check_images: bool = True,
) -> tuple[Summary, ReadCounts]:
    """Read a whole file, past its errors (see `read_records`). Raises OSError when it cannot be read."""
    summary, counts = Summary(), ReadCounts()
    for record in read_records(
        path,
        coordinate_space=coordinate_space,
        on_bad_record="skip",
        special_texts=special_texts,
        check_images=check_images,
        counts=counts,
    ):
        summary.add(record)
    return summary, counts


def summary_lines(path: Path, summary: Summary, counts: ReadCounts) -> Iterable[str]:
    """What is said about one file."""
    yield f"{path}: {counts.records} records, {len(counts.skipped)} errors"
    yield f"  objects     {sum(summary.object_counts)}" + "".join(
        f", {count} {kind}" for kind, count in sorted(summary.kinds.items())
    )
    yield f"  descs       {len(summary.descs)} different" + "".join(
        f", {desc!r} {count}" for desc, count in summary.descs.most_common(3)
    )
    yield f"  {'percentile':<18}" + "".join(f"{percentile:>7}" for percentile in PERCENTILES)
    for name, values in (
        ("objects a record", summary.object_counts),
        ("width px", summary.widths),
        ("height px", summary.heights),
    ):
        if values:
            yield f"  {name:<18}" + "".join(f"{percentile(values, share):>7}" for share in PERCENTILES)
    yield f"  widened     {counts.widened} boxes that had no extent in bins"
    yield f"  clamped     {counts.clamped} values up to 1 px outside the image"
    yield from (f"  error: {error}" for error in counts.skipped)


def percentile(values: Sequence[int], share: int) -> int:
    """The smallest value that `share` percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def special_texts_of(model: Path) -> frozenset[str]:
    """The special tokens of a model directory's tokenizer.json, by their text."""
    tokens = orjson.loads((model / "tokenizer.json").read_bytes())["added_tokens"]
    return frozenset(token["content"] for token in tokens if token["special"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="boxloop data check", description="Validate JSONL files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--coordinate-space", choices=("px", "norm1000"), default="px", help="what bare numbers mean")
    parser.add_argument("--no-images", action="store_true", help="do not open the image files")
    parser.add_argument("--model", type=Path, help="model directory whose special tokens no desc may hold")
    options = parser.parse_args(arguments)
    num_errors = 0
    try:
        special_texts = special_texts_of(options.model) if options.model else frozenset()
        for path in options.files:
            summary, counts = check_file(
                path,
                coordinate_space=options.coordinate_space,
                special_texts=special_texts,
                check_images=not options.no_images,
            )
            print(*summary_lines(path, summary, counts), sep="\n")
            num_errors += len(counts.skipped)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 1 if num_errors else 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # each error is in the summary
    sys.exit(main())
