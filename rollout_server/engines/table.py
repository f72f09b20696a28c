"""The decoding engines by name. Building one imports its own libraries, and no other's."""

from collections.abc import Callable, Mapping

from rollout_server.engines.base import Engine
from rollout_server.settings import EngineName, ServerSettings


def _vllm(settings: ServerSettings) -> Engine:
    from rollout_server.engines.vllm.engine import VllmEngine

    return VllmEngine(settings)


def _hf(settings: ServerSettings) -> Engine:
    from rollout_server.engines.hf.engine import HfEngine

    return HfEngine(settings)


def _scripted(settings: ServerSettings) -> Engine:
    from rollout_server.engines.scripted import ScriptedEngine

    return ScriptedEngine(settings)


ENGINES: Mapping[EngineName, Callable[[ServerSettings], Engine]] = {"vllm": _vllm, "hf": _hf, "scripted": _scripted}
"""Those that `rollout_backend` names, and `scripted`, which is for tests only."""


def build_engine(settings: ServerSettings) -> Engine:
    """The engine that `settings` name. Raises ConfigError for one whose libraries are not installed."""
    return ENGINES[settings.engine](settings)
