"""From the wire's sampling to vLLM's, and the endings: which of them vLLM finds by itself, and which are watched.

vLLM stops at the stop ids, at the length and, if the answer repeats itself, at one pattern length. What it cannot
express is watched by `StopRule` on the tokens as they arrive, a few late, and cut back to where the rule ends the
answer.
"""

import math
from collections.abc import Callable
from typing import Any, get_args

from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

from rollout_server.engines.base import EngineRequest
from rollout_server.engines.stopping import StopRule
from shared.wire import FinishReason, RepeatTerminate

WATCH_INTERVAL = 16
"""Tokens between two looks at an answer that is watched: each look costs the event loop some microseconds."""

FINISH_REASONS: dict[str | None, FinishReason] = {reason: reason for reason in get_args(FinishReason)}
"""vLLM's words for the endings are ours; it has others for what is no answer."""


def sampling_params(request: EngineRequest) -> SamplingParams:
    """How vLLM is to decode `request`."""
    sampling = request.sampling
    return SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=request.seed if sampling.temperature > 0 else None,
        repetition_penalty=sampling.repetition_penalty,
        repetition_detection=repetition_detection(sampling.repeat_terminate),
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=True,
        logit_bias=dict.fromkeys(sampling.banned_token_ids, -math.inf) or None,
        logprobs=0 if request.return_logprobs else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if is_watched(sampling.repeat_terminate) else RequestOutputKind.FINAL_ONLY,
        stream_interval=WATCH_INTERVAL,
    )


class GrowingAnswer:
    """One answer, from the pieces that vLLM delivers; never more tokens of them than `StopRule` lets through."""

    def __init__(self, request: EngineRequest, text_of: Callable[[int], str]) -> None:
        self.token_ids: list[int] = []
        self._logprobs: list[float] | None = [] if request.return_logprobs else None
        self._rule = StopRule(request.sampling, text_of) if is_watched(request.sampling.repeat_terminate) else None

    @property
    def token_logprobs(self) -> tuple[float, ...] | None:
        return None if self._logprobs is None else tuple(self._logprobs[: len(self.token_ids)])

    def add(self, piece: Any) -> str | None:
        """Append the new tokens of `piece`, a CompletionOutput; returns why the answer ends with them, or None."""
        if self._logprobs is not None and piece.logprobs is not None:
            chosen = zip(piece.token_ids, piece.logprobs, strict=True)
            self._logprobs.extend(by_token[token_id].logprob for token_id, by_token in chosen)
        finish_reason: str | None = piece.finish_reason
        if self._rule is None:
            self.token_ids.extend(piece.token_ids)
            return finish_reason
        for token_id in piece.token_ids:
            self.token_ids.append(token_id)
            if reason := self._rule.after(self.token_ids):
                return reason
        return finish_reason


def repetition_detection(limits: RepeatTerminate | None) -> RepetitionDetectionParams | None:
    """The first of the repeats in `limits` that vLLM ends at the very same token as `StopRule`, if there is one."""
    for size, repeats in _repeats(limits):
        # vLLM asks for two repeats at least and knows no shortest answer.
        if repeats >= 2 and limits is not None and limits.min_new_tokens <= size * repeats:
            return RepetitionDetectionParams(max_pattern_size=size, min_pattern_size=size, min_count=repeats)
    return None


def is_watched(limits: RepeatTerminate | None) -> bool:
    """Whether `limits` hold anything that vLLM's own detection leaves open."""
    if limits is None:
        return False
    found_by_vllm = repetition_detection(limits) is not None
    return limits.max_object_keys > 0 or len(_repeats(limits)) > found_by_vllm


def _repeats(limits: RepeatTerminate | None) -> list[tuple[int, int]]:
    """(tokens of the pattern, times in a row) of each limit that is set."""
    if limits is None:
        return []
    pairs = ((1, limits.max_consecutive_token_repeats), (limits.ngram_size, limits.ngram_repeats))
    return [(size, repeats) for size, repeats in pairs if size * repeats > 0]
