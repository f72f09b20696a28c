"""What the fault tests share: finding a run's processes, what they are doing, and what was learned."""

import json
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file

DISTURBED_UP = ("-m", "tests.end_to_end.disturbed_run")
SERVERS = ("rollout_server", "tests.end_to_end.disturbed_server")
LEARNERS = ("learner", "tests.end_to_end.stopped_learner")
"""Modules that play these parts."""
RESUMED = "training.resume_from_checkpoint=true"
ROLLOUT = "custom.extra.rollout_matching"
PATTERN = "custom.extra.stage2_ab.schedule.pattern"
QUIET = ("training.eval_on_start=false", "training.eval_strategy=no", f"{ROLLOUT}.monitor_dump.enabled=false")
NUM_STEPS, PER_STEP, NUM_RECORDS = 6, 6, 64
SHORT_RUN = (
    *QUIET, f"{PATTERN}=[A,B]", "server_port=0", "wait_interval=0.1", f"training.max_steps={NUM_STEPS}",
    "training.save_steps=2", f"{ROLLOUT}.rollout_infer_batch_size=3", f"{ROLLOUT}.vllm.server.stall_timeout_s=3",
)  # fmt: skip
"""Six short steps A, B, A, B, A, B; two batches of three answers in each B."""


@dataclass(frozen=True)
class FoundServer:
    """A rollout server among the processes of a run."""

    pid: int
    port: int

    def num_open(self) -> float:
        """Samples of the batches that it is asked for; 0 while it does not answer at all."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", trust_env=False, timeout=2).text
        except httpx.TransportError:
            return 0
        return float(re.findall(r"^boxloop_server_open_samples (\S+)", text, re.MULTILINE)[0])


def words_of(pid: int) -> list[str]:
    """The command line of a process; none when it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def servers_of(run: Any) -> list[FoundServer]:
    """The rollout servers of a run, in the order of their ports."""
    lines = {pid: words_of(pid) for pid in run.pids()}
    found = [
        FoundServer(pid, int(words[words.index("--port") + 1]))
        for pid, words in lines.items()
        if "--port" in words and words[2] in SERVERS
    ]
    return sorted(found, key=lambda server: server.port)


def learner_of(run: Any) -> int | None:
    """The pid of a run's learner, whichever module plays it; None before it has started."""
    return next((pid for pid in run.pids() if words_of(pid)[2:3] and words_of(pid)[2] in LEARNERS), None)


def is_stopped(pid: int | None) -> bool:
    """Whether a SIGSTOP has come to it."""
    return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def decoding(run: Any, server: int = 0) -> FoundServer | None:
    """The server of that number, while it decodes."""
    servers = servers_of(run)
    found = servers[server] if server < len(servers) and servers else None
    return found if found is not None and found.num_open() else None


def disturb(run: Any, server: int, number: signal.Signals) -> None:
    """Send a signal to a server that has work."""
    found: list[FoundServer] = []

    def is_decoding() -> bool:
        found[:] = [each] if (each := decoding(run, server)) else []
        return bool(found)

    run.wait_for(is_decoding)
    os.kill(found[0].pid, number)


def records_of(folder: Path, name: str = "logging.jsonl") -> list[dict[str, Any]]:
    """What a run has written so far, whole lines only."""
    path = folder / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def differing(ours: Path, theirs: Path) -> list[str]:
    """Names of the weights in which two checkpoints are not bitwise equal."""
    left, right = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert left.keys() == right.keys()
    return [name for name in left if not torch.equal(left[name], right[name])]


def assert_each_record_was_learned_once(folder: Path, num_steps: int, per_step: int) -> None:
    """In each epoch, by the ledger; and by the number of targets that were in packs."""
    ledger = records_of(folder, "ledger.jsonl")
    trained = Counter(name for line in ledger for name in line["trained"])
    num_epochs, num_begun = divmod(num_steps * per_step, NUM_RECORDS)
    expected = Counter({num_epochs + 1: num_begun, num_epochs: NUM_RECORDS - num_begun if num_epochs else 0})
    assert Counter(trained.values()) == expected
    assert not any(line.get("lost") for line in ledger)
    records = [record for record in records_of(folder) if "channel" in record]
    assert [record["step"] for record in records] == list(range(1, num_steps + 1))
    in_packs = [record["packing/num_packs"] * record["packing/post_rollout_segments"] for record in records]
    assert all(abs(each - per_step) < 1e-6 for each in in_packs)


def assert_nothing_happened(run: Any, undisturbed: Path) -> None:
    """It ended as the run without a fault did, and left no process."""
    assert_each_record_was_learned_once(run.folder, NUM_STEPS, PER_STEP)
    assert differing(run.folder / f"checkpoint-{NUM_STEPS}", undisturbed) == []
    assert run.pids() == []
    assert "Traceback" not in run.told


def assert_all_end(run: Any) -> None:
    """Nothing outlives a supervisor that was ended from outside."""
    deadline = time.monotonic() + 60
    while run.pids():
        assert time.monotonic() < deadline, f"still alive: {run.pids()}"
        time.sleep(0.05)
