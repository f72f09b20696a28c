"""From the wire's sampling to vLLM's, and the endings: which of them vLLM finds by itself, and which are watched.

vLLM stops at the stop ids, at the length and, if the answer repeats itself, at one pattern length. What it cannot
express is watched by `StopRule` on the tokens as they arrive, a few late, and cut back to where the rule ends the
answer.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from vllm import SamplingParams
from vllm.platforms import current_platform
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

from rollout_server.engines.base import EngineRequest, SampleRejected
from rollout_server.engines.stop_decision import DecisionPlaces
from rollout_server.engines.stopping import StopRule
from shared.wire import MAX_MARGIN, FinishReason, RepeatTerminate, Sampling

WATCH_INTERVAL = 16
"""Tokens between two looks at an answer that is watched: each look costs the event loop some microseconds."""

STOP_DECISION = "stop_decision"
"""The extra argument of a request that holds its `StopDecision`, as plain data; read by `StopBiasProcessor`."""
NUM_RANKED = 5
"""Tokens whose log-probabilities are asked for where a margin is wanted. An ending beyond them counts as their last."""

FINISH_REASONS: dict[str | None, FinishReason] = {reason: reason for reason in get_args(FinishReason)}
"""vLLM's words for the endings are ours; it has others for what is no answer."""


def sampling_params(request: EngineRequest) -> SamplingParams:
    """How vLLM is to decode `request`. Raises SampleRejected for a bias that its runner cannot apply."""
    sampling = request.sampling
    decision = sampling.stop_decision
    if decision and not decision.stands_alone and not current_platform.is_cpu():
        raise SampleRejected(
            "engine_error",
            "the ids that end an answer stand elsewhere in answers too, where vLLM on a GPU would bias them as well; "
            "use rollout_backend: hf for this tokenizer",
        )
    wanted = NUM_RANKED if decision else 0 if request.return_logprobs else None
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
        logit_bias=logit_bias(sampling) or None,
        logprobs=wanted,
        extra_args={STOP_DECISION: decision.model_dump()} if decision and not decision.stands_alone else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if is_watched(sampling.repeat_terminate) else RequestOutputKind.FINAL_ONLY,
        stream_interval=WATCH_INTERVAL,
    )


def logit_bias(sampling: Sampling) -> dict[int, float]:
    """What is added to logits throughout: bans, and the bias of an ending whose ids stand nowhere else."""
    bias = dict.fromkeys(sampling.banned_token_ids, -math.inf)
    if (decision := sampling.stop_decision) and decision.stands_alone:
        bias |= {decision.at_start[-1]: -decision.bias, decision.behind_coordinate[-1]: -decision.bias}
    return bias


class GrowingAnswer:
    """One answer, from the pieces that vLLM delivers; never more tokens of them than `StopRule` lets through."""

    def __init__(self, request: EngineRequest, text_of: Callable[[int], str]) -> None:
        self.token_ids: list[int] = []
        self._logprobs: list[float] | None = [] if request.return_logprobs else None
        decision = request.sampling.stop_decision
        self._places = DecisionPlaces(decision) if decision else None
        self._margins: list[tuple[int, float]] = []
        self._rule = StopRule(request.sampling, text_of) if is_watched(request.sampling.repeat_terminate) else None

    @property
    def token_logprobs(self) -> tuple[float, ...] | None:
        return None if self._logprobs is None else tuple(self._logprobs[: len(self.token_ids)])

    @property
    def stop_margins(self) -> tuple[tuple[int, float], ...]:
        return tuple((place, margin) for place, margin in self._margins if place < len(self.token_ids))

    def add(self, piece: Any) -> str | None:
        """Append the new tokens of `piece`, a CompletionOutput; returns why the answer ends with them, or None."""
        if self._logprobs is not None and piece.logprobs is not None:
            chosen = zip(piece.token_ids, piece.logprobs, strict=True)
            self._logprobs.extend(by_token[token_id].logprob for token_id, by_token in chosen)
        if self._places is not None and piece.logprobs is not None:
            self._weigh(self._places, piece)
        finish_reason: str | None = piece.finish_reason
        if self._rule is None:
            self.token_ids.extend(piece.token_ids)
            return finish_reason
        for token_id in piece.token_ids:
            self.token_ids.append(token_id)
            if reason := self._rule.after(self.token_ids):
                return reason
        return finish_reason

    def _weigh(self, places: DecisionPlaces, piece: Any) -> None:
        """Note the margin of each decision among the tokens of `piece`, which are not part of the answer yet."""
        token_ids = [*self.token_ids, *piece.token_ids]
        for place, by_token in enumerate(piece.logprobs, len(self.token_ids)):
            if (ending := places.ending_id(token_ids[:place])) is not None:
                self._margins.append((place, margin_of(ending, by_token)))


def margin_of(ending: int, by_token: Mapping[int, Any]) -> float:
    """How far the log-probability of `ending` is above the best other of those that vLLM names."""
    others = [each.logprob for token_id, each in by_token.items() if token_id != ending]
    ended = by_token[ending].logprob if ending in by_token else min(others)
    return max(-MAX_MARGIN, min(MAX_MARGIN, float(ended - max(others))))


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
