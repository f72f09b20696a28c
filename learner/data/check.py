"""`python -m learner.data.check FILE…`: reads JSONL files against the data contract and says what is in them."""

import argparse
import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal

import orjson

from learner.data.images import ImageReader, read_image
from learner.data.progress import progress_bar
from learner.data.smells import Smells
from learner.detection.record import GoodLine, ReadCounts, Record, RecordError, build_record, good_lines
from learner.detection.record_rules import COORDINATE_TEXTS, Changes, CheckedRecord, Rules
from shared.checkpoint_facts import TOKENIZER_FILE
from shared.config.paths import user_path
from shared.console import run_main
from shared.errors import BoxloopError, DataError
from shared.families.table import FACTS

PERCENTILES = (0, 50, 90, 99, 100)
MOST_AT_ONCE = 64
"""Records whose images are decoded or wait for it."""


@dataclass
class Summary:
    """What good records hold: sizes in px, objects per record."""

    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    object_counts: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    descs: Counter[str] = field(default_factory=Counter)
    own_prompts: int = 0
    with_classes: int = 0
    smells: Smells = field(default_factory=Smells)

    def add(self, record: Record) -> None:
        self.widths.append(record.width)
        self.heights.append(record.height)
        self.object_counts.append(len(record.objects))
        self.kinds.update(item.kind for item in record.objects)
        self.descs.update(item.desc for item in record.objects)
        self.own_prompts += record.prompt is not None
        self.with_classes += bool(record.classes)


@dataclass(frozen=True)
class Checks:
    """How closely a file is looked at: `images` are decoded, or their headers are read, or they are left alone.

    `reader` also resizes them as the model of its checkpoint wants it.
    """

    rules: Rules
    images: Literal["decode", "headers", "none"] = "decode"
    reader: ImageReader | None = None


def check_file(path: Path, checks: Checks, show: Callable[[int], None] = lambda _: None) -> tuple[Summary, ReadCounts]:
    """Read a whole file, past its errors. `show` is told how many bytes of it are done.

    Raises OSError when it cannot be read, and DataError when it is not made of JSON lines.
    """
    summary, counts = Summary(), ReadCounts()
    rules = replace(checks.rules, check_images=checks.images != "none")

    def check(line: bytes, folder: Path, changes: Changes) -> CheckedRecord:
        content = rules.check(line, folder, changes)
        if rules.coordinate_space == "px":
            summary.smells.add_objects(content.width, content.height, orjson.loads(line)["objects"])
        return content

    lines = good_lines(path, check, "skip", counts)
    for line, fault in _with_images(lines, partial(_fault_of, path, checks)):
        if fault:
            counts.records -= 1
            counts.skipped.append(RecordError(path, line.number, None, fault))
        else:
            summary.add(build_record(line.content, path, line.number))
        show(line.offset + line.num_bytes)
    counts.skipped.sort(key=attrgetter("line"))
    return summary, counts


def _with_images(
    lines: Iterator[GoodLine[CheckedRecord]], fault_of: Callable[[GoodLine[CheckedRecord]], str]
) -> Iterator[tuple[GoodLine[CheckedRecord], str]]:
    """Each line and what is wrong with its image, in their order; images are decoded side by side on all cores."""
    waiting: deque[tuple[GoodLine[CheckedRecord], Future[str]]] = deque()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for line in lines:
            waiting.append((line, threads.submit(fault_of, line)))
            if len(waiting) >= MOST_AT_ONCE:
                first, fault = waiting.popleft()
                yield first, fault.result()
        for line, fault in waiting:
            yield line, fault.result()


def _fault_of(path: Path, checks: Checks, line: GoodLine[CheckedRecord]) -> str:
    """Why training could not use the image of a line; empty for a good one."""
    record = build_record(line.content, path, line.number)
    try:
        if checks.images == "decode":
            read_image(record)
        if checks.reader is not None:
            checks.reader.resized(record.width, record.height)
    except DataError as error:
        return str(error).removeprefix(f"{record.record_id}: ")
    return ""


def summary_lines(path: Path, summary: Summary, counts: ReadCounts) -> Iterable[str]:
    """What is said about one file."""
    yield f"{path}: {counts.records} records, {len(counts.skipped)} errors"
    yield f"  objects     {sum(summary.object_counts)}" + "".join(
        f", {count} {kind}" for kind, count in sorted(summary.kinds.items())
    )
    yield f"  descs       {len(summary.descs)} different" + "".join(
        f", {desc!r} {count}" for desc, count in summary.descs.most_common(3)
    )
    if summary.own_prompts or summary.with_classes:
        yield f"  prompts     {summary.own_prompts} of the records' own, {summary.with_classes} with classes"
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
    yield from (f"  warning: {warning}" for warning in summary.smells.warnings())
    yield from (f"  error: {error}" for error in counts.skipped)
    if not counts.records:
        yield f"  error: {path} has no record to train on"


def percentile(values: Sequence[int], share: int) -> int:
    """The smallest value that `share` percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def special_texts_of(model: Path) -> frozenset[str]:
    """The special tokens of a model directory's tokenizer.json, by their text, and all coordinate tokens."""
    tokens = orjson.loads((model / TOKENIZER_FILE).read_bytes())["added_tokens"]
    return frozenset(token["content"] for token in tokens if token["special"]) | COORDINATE_TEXTS


def special_texts_of_families() -> frozenset[str]:
    """The special tokens of any model that can be trained here."""
    return frozenset(text for facts in FACTS.values() for text in facts.special_texts) | COORDINATE_TEXTS


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="boxloop data check", description="Validate JSONL files.")
    parser.add_argument("files", nargs="+", type=user_path, metavar="FILE")
    parser.add_argument("--coordinate-space", choices=("px", "norm1000"), default="px", help="what bare numbers mean")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--headers", action="store_true", help="read the headers of image files, not their pixels")
    images.add_argument("--no-images", action="store_true", help="do not open the image files")
    parser.add_argument(
        "--model", type=user_path, help="model directory whose special tokens no desc may hold, and whose sizes count"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when training will take every record, 1 when it will not, 2 when a file cannot be read."""
    options = parser().parse_args(arguments)
    try:
        checks = checks_of(options)
    except (BoxloopError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"--model {options.model} cannot be read: {error}", file=sys.stderr)
        return 2
    num_errors = 0
    for path in options.files:
        try:
            num_errors += check_and_tell(path, checks)
        except BrokenPipeError:
            raise
        except OSError as error:
            print(f"{error.filename or path}: {error.strerror}", file=sys.stderr)
            return 2
    return 1 if num_errors else 0


def checks_of(options: argparse.Namespace) -> Checks:
    """What the command line asks for. Raises, in many ways, for a model that cannot be read."""
    special = special_texts_of(options.model) if options.model else special_texts_of_families()
    return Checks(
        Rules(options.coordinate_space, special),
        "none" if options.no_images else "headers" if options.headers else "decode",
        ImageReader.from_checkpoint(options.model) if holds_model(options.model) else None,
    )


def holds_model(folder: Path | None) -> bool:
    """Whether a folder says more than which tokens there are."""
    return folder is not None and (folder / "config.json").is_file()


def check_and_tell(path: Path, checks: Checks) -> int:
    """Check a file, print what is in it and what is wrong, and return the number of errors."""
    try:
        with progress_bar(f"checking {path.name}", path.stat().st_size, in_bytes=True) as show:
            summary, counts = check_file(path, checks, show)
    except DataError as error:
        print(f"{path}: 0 records, 1 errors\n  error: {error}")
        return 1
    print(*summary_lines(path, summary, counts), sep="\n")
    return len(counts.skipped) or not counts.records


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # each error is in the summary
    run_main(main)
