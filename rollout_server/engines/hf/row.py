"""One answer as it grows in the batch."""

import random
import time
from collections.abc import Callable, Sequence

from rollout_server.engines.base import EngineAnswer, EngineFailure, EngineRequest, EngineResult
from rollout_server.engines.hf.prompt import Prompt
from rollout_server.engines.stop_decision import DecisionPlaces
from rollout_server.engines.stopping import StopRule
from shared.wire import FinishReason


class Row:
    """One answer on its way. `cancelled` may be set from any thread; all else belongs to the decoding thread."""

    def __init__(
        self,
        request: EngineRequest,
        prompt: Prompt,
        stop_rule: StopRule,
        deliver: Callable[[EngineResult], None],
    ) -> None:
        self.prompt = prompt
        self.sampling = request.sampling
        self.wants_logprobs = request.return_logprobs
        self.rng = random.Random(request.seed)
        self.cancelled = False
        self.token_ids: list[int] = []
        self.started_at = 0.0
        self._first_token_at = 0.0
        self._request = request
        self._logprobs: list[float] = []
        self._stop_rule = stop_rule
        decision = request.sampling.stop_decision
        self._places = DecisionPlaces(decision) if decision else None
        self._margins: list[tuple[int, float]] = []
        self._deliver = deliver

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values are in the cache: all but the last one chosen."""
        return self.prompt.num_tokens + len(self.token_ids) - 1

    @property
    def num_reserved(self) -> int:
        return self.prompt.num_tokens + self.sampling.max_new_tokens

    def seen_token_ids(self) -> Sequence[int]:
        return [*self.prompt.token_ids.tolist(), *self.token_ids]

    def ending_id(self) -> int | None:
        """The id that would end the answer, where the next token decides on that by a biased logit."""
        return self._places.ending_id(self.token_ids) if self._places else None

    def add(self, token_id: int, logprob: float | None, margin: float | None = None) -> FinishReason | None:
        """Append a token, and the margin of a stop that was decided on; returns why the answer ends, or None."""
        if margin is not None:
            self._margins.append((len(self.token_ids), margin))
        self._first_token_at = self._first_token_at or time.monotonic()
        self.token_ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        return self._stop_rule.after(self.token_ids)

    def fail(self, message: str) -> None:
        """Give this answer up; the others go on."""
        self._deliver(EngineFailure(self._request.uid, "engine_error", message))

    def finish(self, reason: FinishReason) -> None:
        """Hand the answer over."""
        self._deliver(
            EngineAnswer(
                uid=self._request.uid,
                token_ids=tuple(self.token_ids),
                finish_reason=reason,
                num_prompt_tokens=self.prompt.num_tokens,
                image_grid=self.prompt.image_grid,
                token_logprobs=tuple(self._logprobs) if self.wants_logprobs else None,
                started_at=self.started_at,
                first_token_at=self._first_token_at,
                finished_at=time.monotonic(),
                stop_margins=tuple(self._margins),
            )
        )
