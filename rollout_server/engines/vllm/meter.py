"""How much vLLM has decoded, from the statistics that it makes at each step."""

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class TokenMeter(StatLoggerBase):  # type: ignore[misc]
    """All tokens generated so far, those of unfinished answers too."""

    def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
        self.generated_tokens = 0

    def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **more: Any) -> None:
        """Called by vLLM on the event loop, once a step."""
        if iteration_stats is not None:
            self.generated_tokens += iteration_stats.num_generation_tokens

    def log_engine_initialized(self) -> None:
        pass
