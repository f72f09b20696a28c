"""The doctor's half of the learner: `python -m learner.preflight --config FILE [key=value …]`.

Looks at checkpoint, tokenizer, data and servers as a run would, without loading a model, and prints a finding a line.
"""

if __name__ == "__main__":
    from shared.companions import tolerate_cuda_builds

    tolerate_cuda_builds()  # before anything imports transformers

import asyncio
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from learner.checkpoints.start import start_of
from learner.data.encoding import Encoder
from learner.data.images import read_image
from learner.data.lengths import prompt_lengths
from learner.data.opening import (
    check_embeddings,
    check_validation_prompts,
    fit_training,
    open_encoder,
    reading_of,
)
from learner.data.prompt import prompt_of
from learner.data.records import Reading, RecordSource
from learner.detection.record import Record
from learner.detection.record_rules import CLASSES
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.model.coordinate_rows import check_coordinate_rows
from learner.plan.planner import Planner
from learner.reporting.metrics_server import metrics_socket
from learner.reporting.trackers import check_trackers
from learner.servers.reachable import examine_servers
from learner.weight_sync.table import OUTLETS
from shared.checkpoint_facts import find_model, folder_here
from shared.config.models import Config
from shared.errors import DataError
from shared.families.table import facts_in
from shared.findings import Finding, attempt, checked, passed, warned
from shared.preflight import run_preflight

NUM_IMAGES = 200
"""Image files whose headers are looked at; a run looks at all of them."""


@dataclass(frozen=True)
class Reader:
    """What turns records into tokens."""

    vocabulary: CoordinateVocabulary
    encoder: Encoder


def examine(config: Config) -> Iterator[Finding]:
    """All checks, each told as soon as it is done; what needs something that could not be read is left out."""
    yield packages(config)
    yield checked("metrics port", partial(metrics_port, config))
    model, finding = attempt("checkpoint", partial(checkpoint_of, config))
    yield finding
    folder = folder_here(model) if model is not None else None
    if folder is None:
        if model is not None:
            yield warned("tokenizer", f"{model} is not on this disk", "it is fetched and checked at the start")
        yield from examine_data_alone(config)
        return
    reader, finding = attempt("tokenizer", partial(reader_of, config, folder))
    yield finding
    if reader is not None:
        yield coordinate_rows(config, folder, reader.vocabulary)
    yield from examine_data(config, reader) if reader is not None else examine_data_alone(config)
    if config.decodes and config.rollout.vllm.server.servers:
        sync = config.rollout.vllm.sync
        needs_shared_folder = OUTLETS[sync.transport].needs_shared_folder
        yield from asyncio.run(
            examine_servers(config.rollout.vllm.server, folder, sync.transport, needs_shared_folder=needs_shared_folder)
        )


def packages(config: Config) -> Finding:
    """Whether the optional packages that the run asks for are installed."""

    def look() -> str:
        check_trackers(config.training)
        return "all that the run asks for are installed"

    return checked("packages", look)


def metrics_port(config: Config) -> str:
    """Whether the learner can serve its /metrics."""
    metrics_socket(config.training.metrics_port).close()
    return f"{config.training.metrics_port} is free" if config.training.metrics_port else "any free one"


def checkpoint_of(config: Config) -> tuple[str, str]:
    """The model that training starts from.

    Raises ConfigError when it cannot be one, is of no known family, or does not fit the tuner.
    """
    start = start_of(config.model.model, config.tuner, config.training)
    if (folder := find_model(start.model)) is not None:
        facts_in(folder)
    resumed = f", resumed from {start.resumed}" if start.resumed else ""
    adapters = f", adapters of {start.adapters}" if start.adapters and not start.resumed else ""
    return start.model, f"{start.model}{resumed}{adapters}"


def reader_of(config: Config, folder: Path) -> tuple[Reader, str]:
    """Tokenizer and image processor. Raises DataError or ConfigError for what they lack."""
    tokenizer = load_tokenizer(str(folder))
    vocabulary = CoordinateVocabulary.from_tokenizer(tokenizer)
    size = check_embeddings(vocabulary, folder)
    encoder = open_encoder(config, folder, tokenizer)
    return Reader(vocabulary, encoder), f"all 1000 coordinate tokens, ids below the vocabulary of {size}"


def coordinate_rows(config: Config, folder: Path, vocabulary: CoordinateVocabulary) -> Finding:
    """Whether the coordinate tokens have rows that can be told apart, unless adapters with rows go on them."""
    start = start_of(config.model.model, config.tuner, config.training)
    if start.adapters is not None:
        return passed("coordinate rows", f"as {start.adapters} has trained them")

    def look() -> tuple[str, str]:
        return check_coordinate_rows(folder, vocabulary.coordinate_ids, config.tuner), "can be told apart"

    warning, finding = attempt("coordinate rows", look)
    return warned("coordinate rows", warning) if warning else finding


def examine_data(config: Config, reader: Reader) -> Iterator[Finding]:
    """Every line of both files, the first images, and whether prompts and answers fit."""
    custom = config.custom
    reading = replace(reading_of(config, reader.vocabulary, "error"), check_images=False)
    source, finding = attempt(
        "training data", partial(source_of, custom.train_jsonl, reading, custom.train_sample_limit)
    )
    yield finding
    if source is not None:
        yield checked("lengths", partial(lengths, config, reader, source))
        yield checked("steps", partial(steps, config, source))
        yield checked("images", partial(images, config, reading_of(config, reader.vocabulary, "error")))
    if custom.val_jsonl is not None:
        keeping = replace(reading, polygons="as_bbox" if custom.poly_as_bbox else "keep")
        yield checked("validation data", partial(validation, config, reader, custom.val_jsonl, keeping))


def examine_data_alone(config: Config) -> Iterator[Finding]:
    """What can be said of both files without a tokenizer: every line of them, and the first images."""
    custom = config.custom
    plain = Reading(
        coordinate_space=custom.coordinate_space,
        on_bad_record=custom.on_bad_record,
        polygons="as_bbox" if custom.poly_as_bbox else "error",
        check_images=False,
        needs_classes=CLASSES in prompt_of(config).user,
    )
    yield attempt("training data", partial(source_of, custom.train_jsonl, plain, custom.train_sample_limit))[1]
    yield checked("images", partial(images, config, plain))
    if custom.val_jsonl is not None:
        keeping = replace(plain, polygons="as_bbox" if custom.poly_as_bbox else "keep")
        yield attempt("validation data", partial(source_of, custom.val_jsonl, keeping, custom.val_sample_limit))[1]


def source_of(path: Path, reading: Reading, limit: int | None) -> tuple[RecordSource, str]:
    """Read a whole file, its images left alone."""
    source, counts = RecordSource.opened(path, reading, seed=None, limit=limit)
    skipped = f", {len(counts.skipped)} skipped, the first: {counts.skipped[0]}" if counts.skipped else ""
    return source, f"{path}: {source.num_records} records{skipped}"


def lengths(config: Config, reader: Reader, source: RecordSource) -> str:
    """Compare prompts with their real image tokens, and answers, with what packs and servers hold."""
    fitting = fit_training(source, reader.encoder, reader.vocabulary, config)
    left_out = source.num_records - fitting.source.num_records
    told = f"prompts of up to {fitting.longest_prompt} tokens, with their answers at most {fitting.longest_target} "
    told += f"of {config.global_max_length}{room_for_answers(config, fitting.longest_prompt)}"
    return told + (f"; {left_out} records too long, left out" if left_out else "")


def validation(config: Config, reader: Reader, path: Path, reading: Reading) -> str:
    """Read the whole file, and compare its prompts with what servers hold."""
    source, told = source_of(path, reading, config.custom.val_sample_limit)
    prompt = check_validation_prompts(map(prompt_lengths(source, reader.encoder), source.lines()), config)
    return f"{told}, prompts of up to {prompt} tokens{room_for_answers(config, prompt)}"


def room_for_answers(config: Config, prompt: int) -> str:
    """What a server holds of a prompt of so many tokens and its answer; empty in a run that decodes nothing."""
    if not config.decodes:
        return ""
    return f"; {prompt} + {config.rollout.max_new_tokens} new ones of a server's {config.max_model_len}"


def steps(config: Config, source: RecordSource) -> str:
    """Whether there is anything to train."""
    num_steps = Planner.of(config, source.num_records, source.record_at).num_steps_of(config)
    return f"{num_steps} of {config.effective_batch_size} records"


def images(config: Config, reading: Reading) -> str:
    """Decode the first images as training will; with `on_bad_record: skip` bad ones are counted."""
    custom = config.custom
    limit = min(NUM_IMAGES, custom.train_sample_limit or NUM_IMAGES)
    looking = replace(reading, check_images=True)
    source, counts = RecordSource.opened(custom.train_jsonl, looking, seed=None, limit=limit)
    records = [source.record_at(place) for place in range(source.num_records)]
    bad = [str(skipped) for skipped in counts.skipped]
    with ThreadPoolExecutor() as threads:
        bad += filter(None, threads.map(_fault_of, records))
    if bad and custom.on_bad_record == "error":
        raise DataError(
            f"{bad[0]}{f', and {len(bad) - 1} more' if len(bad) > 1 else ''}; mend it, or set "
            "custom.on_bad_record: skip. `boxloop data check` decodes all of them"
        )
    skipped = f", {len(bad)} are skipped, the first: {bad[0]}" if bad else ""
    return f"the first {len(records)} can be decoded and are as large as said{skipped}"


def _fault_of(record: Record) -> str:
    try:
        read_image(record)
    except DataError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # what is to be said is in the findings
    sys.exit(run_preflight("learner.preflight", examine, "Check what a learner needs.", sys.argv[1:]))
