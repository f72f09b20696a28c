"""What the fault tests share: finding a run's servers, what they are doing, and what was learned."""

import os
import re
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file

SCRIPTED_UP = ("-m", "benchmarks.scripted_run")
ROLLOUT = "custom.extra.rollout_matching"
PATTERN = "custom.extra.stage2_ab.schedule.pattern"
QUIET = ("training.eval_on_start=false", "training.eval_strategy=no", f"{ROLLOUT}.monitor_dump.enabled=false")
NUM_STEPS, PER_STEP = 6, 6
SCRIPTED_RUN = (
    *QUIET, f"{PATTERN}=[A,B]", "server_port=0", "wait_interval=0.1", f"training.max_steps={NUM_STEPS}",
    "training.save_steps=2", f"{ROLLOUT}.rollout_infer_batch_size=3", f"{ROLLOUT}.vllm.server.stall_timeout_s=3",
)  # fmt: skip
"""Six short steps A, B, A, B, A, B with scripted servers."""


@dataclass(frozen=True)
class FoundServer:
    """A rollout server among the processes of a run."""

    pid: int
    port: int

    def num_open(self) -> float:
        """Samples that it was asked for and has not answered; 0 while it does not answer at all."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False, timeout=2).text
        except httpx.TransportError:
            return 0
        return float(re.findall(r"^boxloop_server_open_samples (\S+)", text, re.MULTILINE)[0])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


def servers_of(run: Any) -> list[FoundServer]:
    """The rollout servers of a run, in the order of their ports."""
    found = []
    for pid in run.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue
        if b"rollout_server" in words and b"--port" in words:
            found.append(FoundServer(pid, int(words[words.index(b"--port") + 1])))
    return sorted(found, key=lambda server: server.port)


def decoding(run: Any, server: int = 0) -> FoundServer | None:
    """The server of that number, while it decodes."""
    servers = servers_of(run)
    return servers[server] if len(servers) > server and servers[server].num_open() else None


def differing(ours: Path, theirs: Path) -> list[str]:
    """Names of the weights in which two checkpoints are not bitwise equal."""
    left, right = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def assert_each_record_was_learned_once(run: Any, num_steps: int, per_step: int) -> None:
    """By the ledger, and by the number of targets that were in packs."""
    trained = Counter(name for line in run.log("ledger.jsonl") for name in line["trained"])
    assert set(trained.values()) == {1}
    assert len(trained) == num_steps * per_step
    assert not any(line.get("lost") for line in run.log("ledger.jsonl"))
    records = [record for record in run.log() if "channel" in record]
    assert [record["step"] for record in records] == list(range(1, num_steps + 1))
    in_packs = [record["packing/num_packs"] * record["packing/post_rollout_segments"] for record in records]
    assert all(abs(each - per_step) < 1e-6 for each in in_packs)
