"""From the wire's sampling to vLLM's, and which endings vLLM finds by itself.

vLLM stops at the stop ids, at the length and, if the answer repeats itself, at one pattern length. What it cannot
express is watched by `StopRule` on the tokens as they arrive, a few late, and cut back to where the rule ends the
answer.
"""

import math

from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

from rollout_server.engines.base import EngineRequest
from shared.wire import RepeatTerminate

WATCH_INTERVAL = 16
"""Tokens between two looks at an answer that is watched: each look costs the event loop some microseconds."""


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
