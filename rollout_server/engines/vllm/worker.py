"""Runs inside vLLM's workers: new weights from a file, and an end when the server has gone.

vLLM mixes `WorkerExtension` into its worker class and calls its methods by name, with plain values only.
"""

import logging
import os
import select
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info

from rollout_server.engines.vllm.environment import SOCKETS_VARIABLE

# It warns of each layer that an update leaves alone, which is what a partial one is for.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)


class WorkerExtension:
    """Methods that vLLM's worker gains."""

    get_model: Any
    model_runner: Any
    model_config: Any
    vllm_config: Any

    def end_with_server(self, server_pid: int) -> None:
        """End this process when the server's process is gone, however it went, and its sockets with it."""
        if not hasattr(os, "pidfd_open"):
            return
        descriptor = os.pidfd_open(server_pid)
        threading.Thread(target=_end_when_gone, args=(descriptor,), name="server watch", daemon=True).start()

    @torch.no_grad()
    def load_weights_file(self, path: str) -> str:
        """Replace the weights that the safetensors file at `path` names; returns why it failed, or nothing.

        After a failure the model holds a mixture of old and new weights, but none that is missing.
        """
        model = self.get_model()
        try:
            with set_current_vllm_config(self.vllm_config), safe_open(path, framework="pt") as file:
                small = {name: value.clone() for name, value in model.named_parameters() if value.ndim == 1}
                try:
                    initialize_layerwise_reload(model)
                    loaded = model.load_weights(_tensors_of(file))
                    finalize_layerwise_reload(model, self.model_config)
                finally:
                    _undo_what_is_unfinished(model)
                _restore(model, {name: value for name, value in small.items() if name not in loaded})
                _repack_embeddings(model)
            # A block that is used again is masked behind its last token, not empty, and 0 × NaN is NaN.
            for cache in self.model_runner.kv_caches:
                cache.zero_()
        except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError, AssertionError) as error:
            return f"{Path(path).name}: {error!r}"
        return ""


def _tensors_of(file: Any) -> Iterator[tuple[str, Tensor]]:
    for name in file.keys():  # noqa: SIM118 - no mapping
        yield name, file.get_tensor(name)


def _undo_what_is_unfinished(model: torch.nn.Module) -> None:
    """Give every layer whose reload was begun and not finished its old tensors back: they are placeholders now."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            _place_kernel_tensors(layer, info)
            info.reset()


def _restore(model: torch.nn.Module, values: dict[str, Tensor]) -> None:
    """Put biases and norms back that were not sent: a layer is rebuilt whole when any tensor of it is."""
    for name, value in values.items():
        model.get_parameter(name).copy_(value)


def _repack_embeddings(model: torch.nn.Module) -> None:
    """On a CPU the head multiplies with a packed copy, and one tied to the embedding keeps that of the old weights."""
    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


def _end_when_gone(descriptor: int) -> None:
    select.select([descriptor], [], [])
    shutil.rmtree(os.environ[SOCKETS_VARIABLE], ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)
