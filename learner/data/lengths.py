"""Checks that a run makes before its first step: what never fits, and servers that would misunderstand us."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from learner.data.jsonl import RecordSource
from learner.data.prompt import Encoder
from learner.detection.record import Record
from learner.detection.serialize import answer_text
from learner.detection.targets import ground_truth_target
from learner.detection.vocabulary import CoordinateVocabulary, coordinate_text
from shared.config.models import Config
from shared.errors import ConfigError, DataError
from shared.extras import cure_for, is_installed
from shared.wire import ServerInfo

MAX_MODEL_LEN = "custom.extra.rollout_matching.vllm.max_model_len"
SHORTEST_COORDINATE = len(coordinate_text(0))


def without_long_records(
    source: RecordSource, encoder: Encoder, vocabulary: CoordinateVocabulary, config: Config
) -> RecordSource:
    """The records whose prompt and ground-truth answer fit a pack.

    Raises DataError naming the first that does not, unless `custom.on_long_target` is skip, and ConfigError when the
    longest prompt of those that are left has no room for `max_new_tokens`, in a pack or on a server.
    """
    capacity = config.global_max_length
    longest_prompt = 0

    def fits(record: Record) -> bool:
        nonlocal longest_prompt
        prompt = encoder.num_prompt_tokens(record)
        length = most_tokens(record, prompt, vocabulary, capacity)
        if length > capacity and config.custom.on_long_target == "error":
            raise DataError(
                f"{record.record_id}: prompt and ground-truth answer have {length} tokens, but global_max_length is "
                f"{capacity}; raise it, or set custom.on_long_target: skip"
            )
        if length <= capacity:
            longest_prompt = max(longest_prompt, prompt)
        return length <= capacity

    fitting = source.filtered(fits)
    if config.decodes:
        check_room(longest_prompt, source.path, config, {"global_max_length": capacity, **server_length(config)})
    return fitting


def check_validation_prompts(records: Iterable[Record], encoder: Encoder, config: Config) -> int:
    """Tokens of the longest prompt among `records`, 0 of none.

    Raises ConfigError when a server has no room for it and `max_new_tokens`, in a run that decodes: each such record
    would be lost.
    """
    longest_prompt = max(map(encoder.num_prompt_tokens, records), default=0)
    if config.decodes:
        check_room(longest_prompt, config.custom.val_jsonl, config, server_length(config))
    return longest_prompt


def server_length(config: Config) -> dict[str, int]:
    """The longest prompt and answer of a server in tokens, under the key that says it."""
    own = config.rollout.vllm.max_model_len
    return {"global_max_length" if own is None else MAX_MODEL_LEN: config.max_model_len}


def check_room(prompt: int, path: Path | None, config: Config, limits: Mapping[str, int]) -> None:
    """Raise ConfigError naming the first of `limits` that a prompt of so many tokens and a new answer exceed."""
    new_tokens = config.rollout.max_new_tokens
    for key, limit in limits.items():
        if prompt + new_tokens > limit:
            raise ConfigError(
                f"{key}: the longest prompt of {path} has {prompt} tokens; with {new_tokens} new ones it exceeds "
                f"{limit}; raise that, or lower custom.extra.rollout_matching.max_new_tokens or template.max_pixels"
            )


def most_tokens(record: Record, prompt: int, vocabulary: CoordinateVocabulary, capacity: int) -> int:
    """Tokens of a prompt of so many and the true answer: a quick bound if that is within `capacity`, else exact."""
    bound = prompt + most_answer_tokens(record)
    if bound <= capacity:
        return bound
    return ground_truth_target(record.record_id, range(prompt), record.objects, vocabulary).num_tokens


def most_answer_tokens(record: Record) -> int:
    """An upper bound that needs no tokenizer: a token is a byte or more, a coordinate is one token."""
    num_coordinates = sum(len(item.bins) for item in record.objects)
    num_bytes = len(answer_text(record.objects).encode())
    return num_bytes - num_coordinates * (SHORTEST_COORDINATE - 1) + 1


def check_servers_are_named(config: Config) -> None:
    """Raise ConfigError when a run that decodes has no server to ask."""
    if config.decodes and not config.rollout.vllm.server.servers:
        raise ConfigError(
            "custom.extra.rollout_matching.vllm.server.servers: this run decodes answers and names no rollout server; "
            "start one by `boxloop serve` and name it, or start the whole run by `boxloop up`"
        )


def check_best_metric(config: Config) -> None:
    """Raise ConfigError when checkpoints are to be judged by a score whose package is not installed."""
    name, training = config.training.metric_for_best_model, config.training
    if training.eval_strategy != "no" and name.startswith("eval_coco_") and not is_installed("faster_coco_eval"):
        raise ConfigError(
            f"training.metric_for_best_model: {name} needs faster-coco-eval; {cure_for('faster_coco_eval')}, or judge "
            "by eval_rollout_f1"
        )


def check_server(info: ServerInfo, name: str, folder: Path) -> None:
    """Raise ConfigError when a server's tokenizer is not the learner's."""
    own = folder / "tokenizer.json"
    digest = hashlib.sha256(own.read_bytes()).hexdigest() if own.is_file() else ""
    if digest and info.tokenizer_digest and digest != info.tokenizer_digest:
        raise ConfigError(
            f"model.model: {name} serves {info.model} with another tokenizer ({info.tokenizer_digest[:12]}) than "
            f"{folder} ({digest[:12]}); start both from one checkpoint"
        )
