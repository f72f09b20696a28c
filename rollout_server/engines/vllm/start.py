"""Building vLLM's engine: its arguments on a GPU and on a CPU, and a start that takes seconds.

On a CPU the engine core is forked with everything imported, which spares it ten seconds of imports. A fork is safe only
from a thread that never ran a parallel torch operation (the child would wait for OpenMP threads it does not have), so
`start` is to be called on a thread of its own.
"""

import math
import os
from pkgutil import resolve_name
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from rollout_server.engines.cache_sizes import CacheSizes
from rollout_server.settings import ServerSettings
from shared.errors import ConfigError, EngineFailed
from shared.families.facts import FamilyFacts
from shared.families.table import facts_in

CPU_BLOCK_SIZE = 32
MAX_CPU_CACHE_BYTES = 2**32
ITEM_BYTES = {"float32": 4}
"""Of keys and values; 2 for every other type."""


def start(settings: ServerSettings, folder: str, meter: StatLoggerBase) -> AsyncLLM:
    """Start vLLM's engine with the checkpoint in `folder`; `meter` is told of each of its steps.

    Raises ConfigError for arguments that vLLM refuses and EngineFailed when its process does not come up.
    """
    if current_platform.is_cpu():
        _import_model(facts_in(folder))
    try:
        config = AsyncEngineArgs(**engine_arguments(settings, folder)).create_engine_config()
    except (ValueError, OSError) as error:
        raise ConfigError(f"vLLM refuses model.model {settings.model} or its settings: {error}") from error
    if current_platform.is_cpu():
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # the line above has set spawn
    try:
        return AsyncLLM.from_vllm_config(config, stat_loggers=[lambda *_: meter])
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineFailed(f"vLLM's engine did not start: {error}; its own log lines are above") from error


def _import_model(facts: FamilyFacts) -> None:
    """Import what the engine core will need and name the model's class, or vLLM starts a process to look at it."""
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model(facts.architecture, resolve_name(facts.vllm_class))


def engine_arguments(settings: ServerSettings, folder: str) -> dict[str, Any]:
    """What vLLM's engine is told: the same whether it serves or not."""
    pixels = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    arguments = {
        "model": folder,
        "dtype": settings.dtype,
        "max_model_len": settings.limits.max_model_len,
        "max_num_seqs": settings.limits.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enforce_eager": settings.enforce_eager,
        "limit_mm_per_prompt": {"image": settings.limits.max_images_per_sample, "video": 0},
        "mm_processor_kwargs": {name: value for name, value in pixels.items() if value is not None} or None,
        # An image is seen once a version of the weights. Without this cache nothing can hold an image that was
        # rendered and then never sent to the engine, whose next request would fail.
        "mm_processor_cache_gb": 0,
        "generation_config": "vllm",
        "worker_extension_cls": "rollout_server.engines.vllm.worker.WorkerExtension",
        "seed": 0,
    }
    return arguments | _cpu_arguments(settings, folder) if current_platform.is_cpu() else arguments


def _cpu_arguments(settings: ServerSettings, folder: str) -> dict[str, Any]:
    dtype = "float32" if settings.dtype == "auto" else settings.dtype
    arguments = {
        "dtype": dtype,
        "enforce_eager": True,
        "skip_mm_profiling": True,
        # A GPU's model runner has other processors; there an ending is biased where its ids stand nowhere else.
        "logits_processors": ["rollout_server.engines.vllm.stop_bias:StopBiasProcessor"],
        "block_size": CPU_BLOCK_SIZE,
        "kv_cache_memory_bytes": _cache_bytes(settings, folder, ITEM_BYTES.get(dtype, 2)),
    }
    if settings.tensor_parallel_size == 1:
        # By its qualified name: the short one is read as "a process of its own" on a CPU.
        arguments["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    return arguments


def _cache_bytes(settings: ServerSettings, folder: str, item_bytes: int) -> int:
    """Room for the keys and values of every sequence at its longest, or as much as is reasonable."""
    from transformers import AutoConfig

    sizes = CacheSizes.of(AutoConfig.from_pretrained(folder).text_config)
    blocks = 1 + settings.limits.max_num_seqs * math.ceil(settings.limits.max_model_len / CPU_BLOCK_SIZE)
    return min(blocks * CPU_BLOCK_SIZE * sizes.values_per_token * item_bytes, MAX_CPU_CACHE_BYTES)
