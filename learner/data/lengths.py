"""Checks that a run makes before its first step: what never fits, and servers that would misunderstand us."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from learner.data.encoding import Encoder
from learner.data.records import RecordSource
from learner.detection.record import Record
from learner.detection.serialize import answer_text
from learner.detection.targets import ground_truth_target
from learner.detection.vocabulary import CoordinateVocabulary, coordinate_text
from shared.config.models import Config
from shared.errors import ConfigError, DataError

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
