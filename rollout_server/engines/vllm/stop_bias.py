"""A bias on the ending of an answer where it is decided on, as a logits processor of vLLM's runner for CPUs."""

from collections.abc import Callable, Sequence

from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from rollout_server.engines.stop_decision import DecisionPlaces
from rollout_server.engines.vllm.sampling import STOP_DECISION
from shared.wire import StopDecision


class StopBiasProcessor(AdapterLogitsProcessor):  # type: ignore[misc]
    """Lives in the process of the engine core; sees a request's tokens as they grow."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Callable[[Sequence[int], Tensor], Tensor] | None:
        """What is done to a request's logits [vocabulary] behind its tokens so far; None for one without a decision."""
        given = (params.extra_args or {}).get(STOP_DECISION)
        if given is None:
            return None
        decision = StopDecision.model_validate(given)
        places = DecisionPlaces(decision)

        def biased(token_ids: Sequence[int], logits: Tensor) -> Tensor:
            if (ending := places.ending_id(token_ids)) is not None:
                logits[ending] -= decision.bias
            return logits

        return biased
