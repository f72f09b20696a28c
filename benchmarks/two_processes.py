"""Rollout servers and the training loop, each side on a core of its own, for benchmarks of how they keep busy."""

import io
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from compose.environment import child_environment
from compose.process import ChildProcess, ProcessSpec
from compose.readiness import ServerProcess, wait_until_ready
from learner.build import open_run
from learner.families.load import load_tokenizer
from learner.model.tiny import build_tiny
from learner.reporting.step_report import StepRecord
from learner.train import train
from learner.training.learner import Learner
from shared.config.load import load_config

CANVAS_PX = 128
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8}
STOP_SCALE = 4.0
"""Scale of the end token's row: at temperature 1 the answers of a random model are then of all lengths, as real ones
are, and 3 of 64 run to a limit of 256 tokens; at 2.5 and 160 tokens it was 26, which all arrive at once."""
READY_TIMEOUT_S = 180


@dataclass(frozen=True)
class TimedStep:
    """A finished step and the moment (`time.monotonic`) at which the loop was through with it."""

    record: StepRecord
    ended_at: float

    def seconds(self, name: str) -> float:
        """Seconds of a `time/…` metric."""
        return self.record.tallies.numerator(name)


@dataclass
class Recorder:
    """Takes the place of the log: keeps every step."""

    steps: list[TimedStep] = field(default_factory=list)

    def write(self, step: StepRecord) -> None:
        self.steps.append(TimedStep(step, time.monotonic()))

    def warn(self, message: str | None) -> None:
        """The random model is not expected to answer well."""


def write_checkpoint(folder: Path, **sizes: int) -> None:
    """A random Qwen3-VL whose answers end at any length."""
    build_tiny(folder, **{**SIZES, **sizes})
    file = folder / "model.safetensors"
    tensors = load_file(file)
    (embeddings,) = (tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
    embeddings[load_tokenizer(str(folder)).convert_tokens_to_ids("<|im_end|>")] *= STOP_SCALE
    save_file(tensors, file, metadata={"format": "pt"})


def write_records(file: Path, num_records: int, num_objects: int) -> None:
    """Images of noise with `num_objects` boxes each: the more objects, the more there is to learn of an answer."""
    rng = random.Random(num_objects)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as lines:
        for number in range(num_records):
            image = file.parent / f"{number}.png"
            if not image.exists():
                Image.frombytes("RGB", (CANVAS_PX, CANVAS_PX), rng.randbytes(3 * CANVAS_PX**2)).save(image)
            corners = [(rng.randrange(60), rng.randrange(60)) for _ in range(num_objects)]
            objects = [{"desc": "red circle", "bbox_2d": [x, y, x + 40, y + 50]} for x, y in corners]
            size = {"width": CANVAS_PX, "height": CANVAS_PX}
            lines.write(orjson.dumps({"images": [image.name], "objects": objects, **size}) + b"\n")


def write_config(folder: Path, model: Path, values: dict[str, Any]) -> Path:
    """A Stage-2 configuration in `folder`, with `values` by dotted key over the benchmark's own."""
    rollout, section = "custom.extra.rollout_matching", {}
    own = {
        "model.model": str(model),
        "model.dtype": "float32",
        "template.system": "",
        "training.output_dir": str(folder / "run"),
        "training.learning_rate": 1e-9,  # every run decodes the same answers
        "training.save_strategy": "no",
        "custom.trainer_variant": "stage2_ab_training",
        "custom.user_prompt": "Detect all objects.",
        f"{rollout}.temperature": 1.0,
        f"{rollout}.vllm.sync.weights_root": str(folder / "weights"),
        "custom.extra.stage2_ab.guard.enabled": False,
    }
    for path, value in {**own, **values}.items():
        *parents, last = path.split(".")
        place: dict[str, Any] = section
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    file = folder / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(section))
    return file


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Pin this process, and what it starts inside the block, to one core (None = leave it as it is)."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {sorted(before)[core % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def servers(
    config: Path, folder: Path, arguments: Sequence[Sequence[str]], core: int | None = 0
) -> Iterator[list[str]]:
    """Start a server for each list of `arguments`, all on one core with a thread each; yields their addresses."""
    environment = _one_thread()
    with ExitStack() as stack:
        started = []
        for number, extra in enumerate(arguments):
            port = free_port()
            argv = ("-m", "rollout_server", "--config", str(config), "--port", str(port), *extra)
            spec = ProcessSpec(
                f"server-{number}", (sys.executable, *argv), environment, folder / f"server-{number}.log"
            )
            with on_core(core):
                child = ChildProcess(spec)
            stack.callback(child.stop, 5.0)
            started.append(ServerProcess(child, f"http://127.0.0.1:{port}"))
        wait_until_ready(started, READY_TIMEOUT_S, 0.5, Console(file=io.StringIO()))
        yield [server.base_url for server in started]


def run_as_child(module: str) -> None:
    """Start a benchmark over with the environment of a run's processes: glibc reads its part of it only then."""
    environment = _one_thread()
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment)


def _one_thread() -> dict[str, str]:
    """The environment of a run's process on a CPU, with one thread for its matrices."""
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    return child_environment(given, gpus=(), token="", num_processes=1, disable_proxy=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def trained(
    config: Path,
    addresses: Sequence[str],
    overrides: Sequence[str],
    core: int = 1,
    learner: Callable[[Learner], Any] | None = None,
) -> list[TimedStep]:
    """Run the real training loop on one core, with one thread for its matrices; returns its steps.

    `learner` replaces what computes. Packs are made of what has arrived, also where the servers are asked in order.
    """
    listed = ", ".join(f"{{base_url: '{address}'}}" for address in addresses)
    loaded = load_config(config, [*overrides, f"custom.extra.rollout_matching.vllm.server.servers=[{listed}]"])
    recorder = Recorder()
    torch.set_num_threads(1)
    with on_core(core):
        async with open_run(loaded, Console(file=io.StringIO()), loaded.training.output_dir) as run:
            computing = learner(run.training.learner) if learner else run.training.learner
            training = replace(run.training, learner=computing)
            reporting = replace(run.reporting, sinks=recorder)  # type: ignore[arg-type]
            await train(replace(run, training=training, reporting=reporting, in_order=False))
    return recorder.steps
