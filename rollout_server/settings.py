"""What a rollout server is told at start: one frozen object, made by `__main__` or by a test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.wire import ServerLimits

EngineName = Literal["vllm", "hf", "scripted"]


@dataclass(frozen=True)
class ServerSettings:
    """One server process. `model` is a checkpoint's directory or hub id.

    `token` None leaves the routes open, which only a loopback host may. `weights_root` and `image_root` are the only
    folders that paths on the wire can lead into; None refuses such paths. `min_pixels` and `max_pixels` replace those
    of the image processor, None keeps them. `script` is the scripted engine's file.
    """

    model: str
    engine: EngineName
    limits: ServerLimits
    host: str = "127.0.0.1"
    port: int = 0
    dtype: str = "auto"
    attn_impl: str = "auto"
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    token: str | None = None
    weights_root: Path | None = None
    image_root: Path | None = None
    script: Path | None = None
    heartbeat_s: float = 2.0
    drain_timeout_s: float = 60.0
    stall_timeout_s: float = 120.0
    max_stream_s: float = 3600.0


def limits_for(max_model_len: int, max_num_seqs: int) -> ServerLimits:
    """Caps on one request that follow from what the engine can hold."""
    return ServerLimits(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_open_samples=max(1024, 16 * max_num_seqs),
        max_images_per_sample=4,
        max_image_pixels=2**25,
        max_body_bytes=2**28,
    )
