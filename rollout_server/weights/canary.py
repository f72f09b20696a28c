"""A short decode that tells whole weights from broken ones."""

import math
from contextlib import aclosing

from rollout_server.engines.base import Engine, EngineAnswer
from shared.errors import WeightSyncFailed


async def check_canary(engine: Engine) -> None:
    """Decode the engine's canary; raises WeightSyncFailed unless every log-probability is finite."""
    async with aclosing(engine.generate([engine.canary()])) as results:
        result = await anext(results)
    if not isinstance(result, EngineAnswer):
        raise WeightSyncFailed(f"the canary was not decoded: {result.code}: {result.message}")
    if not result.token_logprobs or not all(math.isfinite(value) for value in result.token_logprobs):
        raise WeightSyncFailed(f"the canary decodes to log-probabilities {result.token_logprobs}")
