"""One answer as it grows, from the pieces that vLLM delivers."""

from collections.abc import Callable
from typing import Any, get_args

from rollout_server.engines.base import EngineRequest
from rollout_server.engines.stopping import StopRule
from rollout_server.engines.vllm.sampling import is_watched
from shared.wire import FinishReason

FINISH_REASONS: dict[str | None, FinishReason] = {reason: reason for reason in get_args(FinishReason)}
"""vLLM's words for the endings are ours; it has others for what is no answer."""


class GrowingAnswer:
    """The tokens so far; never more of them than `StopRule` lets through."""

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
