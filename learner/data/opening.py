"""The data of a run: what turns records into tokens, the records to train on, and those to validate on."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from learner.data.encoding import Encoder
from learner.data.images import ImageReader
from learner.data.lengths import FittingRecords, check_room, without_long_records
from learner.data.prompt import prompt_of
from learner.data.records import Reading, RecordSource, read_all
from learner.data.smells import smells_of
from learner.detection.record import Record
from learner.detection.record_rules import CLASSES
from learner.detection.vocabulary import CoordinateVocabulary
from shared.config.models import Config
from shared.errors import ConfigError

MAX_MODEL_LEN = "custom.extra.rollout_matching.vllm.max_model_len"


@dataclass(frozen=True)
class Data:
    """`validation` are the records in file order, none where the configuration names no file."""

    tokenizer: Any
    vocabulary: CoordinateVocabulary
    encoder: Encoder
    training: RecordSource
    validation: tuple[Record, ...]


def open_data(config: Config, folder: Path, tokenizer: Any, console: Console) -> Data:
    """Read both files of a run that starts from the checkpoint in `folder`.

    Raises DataError and ConfigError for what cannot be read, packed or decoded.
    """
    vocabulary = CoordinateVocabulary.from_tokenizer(tokenizer)
    check_embeddings(vocabulary, folder)
    encoder = open_encoder(config, folder, tokenizer)
    training = read_training(config, vocabulary, encoder, console)
    validation = read_validation(config, vocabulary)
    asked = {(record.width, record.height, encoder.user_text(record)) for record in validation}
    check_validation_prompts(starmap(encoder.num_prompt_tokens, asked), config)
    return Data(tokenizer, vocabulary, encoder, training, validation)


def digests_of(config: Config) -> Mapping[str, str]:
    """sha256 of the files of a run, in hexadecimal, by the keys that name them."""
    files = {"custom.train_jsonl": config.custom.train_jsonl, "custom.val_jsonl": config.custom.val_jsonl}
    digests = {}
    for key, path in files.items():
        if path is not None:
            with path.open("rb") as file:
                digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def check_embeddings(vocabulary: CoordinateVocabulary, folder: Path) -> int:
    """Rows of the embedding by a checkpoint's config.json. Raises ConfigError when tokens have ids beyond them."""
    size = vocab_size_of(folder)
    beyond = [token_id for token_id in vocabulary.coordinate_ids if token_id >= size]
    if beyond:
        raise ConfigError(
            f"model.model: {len(beyond)} coordinate tokens of {folder} have ids from {min(beyond)} on, its vocabulary "
            f"is {size}; `boxloop init {folder} --out DIR` gives them rows, then train Stage 1 (docs/stage1.md)"
        )
    return size


def vocab_size_of(folder: Path) -> int:
    """Rows of the embedding by a checkpoint's config.json. Raises ConfigError when it does not say."""
    config = json.loads((folder / "config.json").read_bytes())
    size = config.get("text_config", config).get("vocab_size")
    if not isinstance(size, int):
        raise ConfigError(f"model.model: {folder}/config.json says no vocab_size; name a whole checkpoint")
    return size


def open_encoder(config: Config, folder: Path, tokenizer: Any) -> Encoder:
    """What makes prompts of records, by the tokenizer and the image processor of a checkpoint."""
    prompt = prompt_of(config)
    return Encoder(
        tokenizer,
        ImageReader.from_checkpoint(folder, config.template.max_pixels, config.template.min_pixels),
        system=prompt.system,
        user_prompt=prompt.user,
        num_workers=config.training.dataloader_num_workers,
        on_bad_record=config.custom.on_bad_record,
    )


def reading_of(config: Config, vocabulary: CoordinateVocabulary, polygons: Literal["error", "keep"]) -> Reading:
    """How the configuration means its JSONL files; `polygons` is what becomes of those that stay polygons."""
    custom = config.custom
    return Reading(
        coordinate_space=custom.coordinate_space,
        on_bad_record=custom.on_bad_record,
        polygons="as_bbox" if custom.poly_as_bbox else polygons,
        object_ordering=custom.object_ordering,
        special_texts=vocabulary.special_texts,
        needs_classes=CLASSES in prompt_of(config).user,
    )


def read_training(config: Config, vocabulary: CoordinateVocabulary, encoder: Encoder, console: Console) -> RecordSource:
    """The training records that can be learned; says what was skipped or changed on the way."""
    custom = config.custom
    with console.status(f"reading {custom.train_jsonl}"):
        source, counts = RecordSource.opened(
            custom.train_jsonl,
            reading_of(config, vocabulary, "error"),
            seed=config.training.seed,
            limit=custom.train_sample_limit,
        )
        fitting = fit_training(source, encoder, vocabulary, config)
    if custom.coordinate_space == "px":
        for warning in smells_of(custom.train_jsonl):
            console.print(f"{custom.train_jsonl}: {warning}", style="yellow", markup=False)
    kept = fitting.source.num_records
    console.print(
        f"{custom.train_jsonl}: {kept} records, {len(counts.skipped) + fitting.num_unsized} skipped, "
        f"{source.num_records - kept - fitting.num_unsized} too long, {counts.widened} boxes widened, "
        f"{counts.clamped} values clamped"
    )
    return fitting.source


def read_validation(config: Config, vocabulary: CoordinateVocabulary) -> tuple[Record, ...]:
    """The validation records in file order; polygons stay polygons."""
    if config.custom.val_jsonl is None:
        return ()
    reading = reading_of(config, vocabulary, "keep")
    return read_all(config.custom.val_jsonl, reading, config.custom.val_sample_limit)


def fit_training(
    source: RecordSource, encoder: Encoder, vocabulary: CoordinateVocabulary, config: Config
) -> FittingRecords:
    """The training records that fit a pack.

    Raises DataError for one that does not (see `without_long_records`), and ConfigError when the longest prompt has no
    room for `max_new_tokens`, in a pack or on a server, in a run that decodes.
    """
    capacity = config.global_max_length
    fitting = without_long_records(
        source, encoder, vocabulary, capacity, config.custom.on_long_target, config.custom.on_bad_record
    )
    if config.decodes:
        limits = {"global_max_length": capacity, **server_length(config)}
        check_room(fitting.longest_prompt, source.path, config.rollout.max_new_tokens, limits)
    return fitting


def check_validation_prompts(prompts: Iterable[int], config: Config) -> int:
    """Tokens of the longest of these prompts, 0 of none.

    Raises ConfigError when a server has no room for it and `max_new_tokens`, in a run that decodes: each such record
    would be lost.
    """
    longest = max(prompts, default=0)
    if config.decodes and config.custom.val_jsonl is not None:
        check_room(longest, config.custom.val_jsonl, config.rollout.max_new_tokens, server_length(config))
    return longest


def server_length(config: Config) -> dict[str, int]:
    """The longest prompt and answer of a server in tokens, under the key that says it."""
    own = config.rollout.vllm.max_model_len
    return {"global_max_length" if own is None else MAX_MODEL_LEN: config.max_model_len}
