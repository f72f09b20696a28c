"""What never fits: records that no pack holds, and prompts that leave no room for an answer."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from learner.data.encoding import Encoder
from learner.data.records import Line, RecordSource
from learner.detection.targets import ground_truth_target
from learner.detection.vocabulary import CoordinateVocabulary
from shared.errors import ConfigError, DataError

LOG = logging.getLogger(__name__)

MOST_TEXTS = 2**14
"""Different texts of prompts that are remembered while lines are measured."""


@dataclass(frozen=True)
class FittingRecords:
    """Records that a pack holds; tokens of their longest prompt, and at most of their longest with its answer.

    `num_unsized` of the others were left out because no image processor resizes their images.
    """

    source: RecordSource
    longest_prompt: int
    longest_target: int
    num_unsized: int = 0


def without_long_records(
    source: RecordSource,
    encoder: Encoder,
    vocabulary: CoordinateVocabulary,
    capacity: int,
    on_long_target: Literal["error", "skip"],
    on_bad_record: Literal["error", "skip"] = "error",
) -> FittingRecords:
    """The records whose prompt and ground-truth answer fit a pack of `capacity` tokens.

    Raises DataError naming the first that does not, unless `on_long_target` is skip; the first whose image has no size
    that the image processor can make of it, unless `on_bad_record` is; and when none is left.
    """
    prompt_tokens = prompt_lengths(source, encoder)
    longest_prompt = longest_target = num_unsized = 0

    def fits(line: Line) -> bool:
        nonlocal longest_prompt, longest_target, num_unsized
        try:
            prompt = prompt_tokens(line)
        except DataError as error:
            reason = f"{source.path}:{line.number}: {error}"
            if on_bad_record == "error":
                raise DataError(reason) from error
            LOG.warning("skipped %s", reason)
            num_unsized += 1
            return False
        length = prompt + line.most_answer_tokens
        if length > capacity:  # only now is it worth tokenising the answer
            record = source.read(line)
            length = ground_truth_target(record.record_id, range(prompt), record.objects, vocabulary).num_tokens
            if length > capacity and on_long_target == "error":
                raise DataError(
                    f"{record.record_id}: prompt and ground-truth answer have {length} tokens, but global_max_length "
                    f"is {capacity}; raise it, or set custom.on_long_target: skip"
                )
        if length <= capacity:
            longest_prompt, longest_target = max(longest_prompt, prompt), max(longest_target, length)
        return length <= capacity

    fitting = source.filtered(fits)
    return FittingRecords(fitting, longest_prompt, longest_target, num_unsized)


def prompt_lengths(source: RecordSource, encoder: Encoder) -> Callable[[Line], int]:
    """What measures the prompts of `source` in tokens. Of the lines that ask alike one is read, and no image.

    It raises DataError for an image that no image processor takes, and for a line that is no longer there.
    """
    tokens_of = lru_cache(MOST_TEXTS)(encoder.num_prompt_tokens)
    texts: dict[int, str] = {}

    def length(line: Line) -> int:
        if not line.asking:
            return tokens_of(line.width, line.height)
        if line.asking not in texts:
            if len(texts) >= MOST_TEXTS:
                texts.clear()
            texts[line.asking] = encoder.user_text(source.read(line))
        return tokens_of(line.width, line.height, texts[line.asking])

    return length


def check_room(prompt: int, path: Path, new_tokens: int, limits: Mapping[str, int]) -> None:
    """Raise ConfigError naming the first of `limits` that a prompt of so many tokens and a new answer exceed."""
    for key, limit in limits.items():
        if prompt + new_tokens > limit:
            raise ConfigError(
                f"{key}: the longest prompt of {path} has {prompt} tokens; with {new_tokens} new ones it exceeds "
                f"{limit}; raise that, or lower custom.extra.rollout_matching.max_new_tokens or template.max_pixels"
            )
