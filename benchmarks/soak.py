"""Hours in minutes: a run whose servers are killed, frozen, stalled and cut at random, watched from outside.

`python -m benchmarks.soak --minutes 20 --seed 0`. Everything is real (supervisor, HTTP, processes, signals, training)
but the model behind the servers, which plays a script. It prints a line a measure and ends with 1 unless steps went on
all the time, every record of every epoch was learned exactly once, and the memory of the learner and of the server that
lives stayed flat.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.measure import print_measure
from learner.data.shapes import render_shapes
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary
from learner.model.load import load_tokenizer
from learner.model.tiny import build_tiny

NUM_RECORDS, PER_STEP = 64, 8
ANSWER_S, STALL_S = 0.4, 3.0
LONGEST_PAUSE_S = 60.0
"""Steps may stand still for so long: a frozen server is noticed after `STALL_S` and then started again."""
WARM_UP = 0.3
"""Share of the samples that memory may still grow in."""
MOST_GROWTH = 1.05
BASE = Path(__file__).resolve().parents[1] / "configs" / "base.yaml"


@dataclass
class Soak:
    """One supervised run and what was seen of it. Times are seconds since its start."""

    folder: Path
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    faults: list[str] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    step_seen_at: float = 0.0
    longest_pause_s: float = 0.0
    num_steps: int = 0

    @property
    def now(self) -> float:
        return time.monotonic() - self.started_at

    def look(self) -> None:
        """Take one sample of progress and memory. The second server is the one that dies, so it has no history."""
        ledger = self.folder / "run" / "ledger.jsonl"
        num_steps = ledger.read_bytes().count(b"\n") if ledger.exists() else 0
        if num_steps > self.num_steps:
            if self.num_steps:
                self.longest_pause_s = max(self.longest_pause_s, self.now - self.step_seen_at)
            self.num_steps, self.step_seen_at = num_steps, self.now
        for name, pid in self.children().items():
            if name != "server-1":
                self.memory.setdefault(name, []).append((self.now, resident_mib(pid)))

    def children(self) -> dict[str, int]:
        """Pids of learner and servers; the one with the lower port is called server-0 here, and is never killed."""
        children: dict[str, int] = {}
        servers: list[tuple[int, int]] = []
        for pid in map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "learner" in words:
                children["learner"] = pid
            elif "rollout_server" in words:
                servers.append((int(words[words.index("--port") + 1]), pid))
        first_port = min((port for port, _ in servers), default=0)
        return children | {f"server-{int(port != first_port)}": pid for port, pid in servers}

    def strike(self, fault: str) -> None:
        """Kill or freeze the second server, or order a fault of whichever server decodes next."""
        numbers = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
        if fault not in numbers:
            (self.folder / "orders" / fault).touch()
        elif (pid := self.children().get("server-1")) is not None:
            os.kill(pid, numbers[fault])
        self.faults.append(fault)


def resident_mib(pid: int) -> float:
    """Resident memory of a process, 0 when it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def started(folder: Path) -> Soak:
    """Render the data, build the model, write script and configuration, and start the run."""
    rendered = sum(render_shapes(folder / "data", train=NUM_RECORDS, val=1, seed=0, num_workers=1))
    assert rendered == NUM_RECORDS + 1
    build_tiny(folder / "tiny")
    (folder / "orders").mkdir()
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(folder / "tiny")))
    text = answer_text([GroundTruthObject("red circle", "bbox_2d", (100, 200, 300, 400))])
    answer = [*vocabulary.encode(text), min(vocabulary.stop_ids)]
    script = {"default": answer, "seconds_per_token": ANSWER_S / len(answer), "orders": str(folder / "orders")}
    (folder / "script.json").write_text(json.dumps(script))
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(folder)))
    arguments = (folder / "script.json", f"config={folder / 'config.yaml'}", "server_port=0", "server_gpus=0,1",
                 "train_gpus=2", "max_restarts=100000", "wait_interval=0.1")  # fmt: skip
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scripted_run", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Soak(folder, process)


def configuration(folder: Path) -> dict[str, object]:
    """Steps A, A, B without end, a checkpoint now and then."""
    return {
        "extends": str(BASE),
        "global_max_length": 512,
        "model": {"model": str(folder / "tiny"), "dtype": "float32"},
        "template": {"system": "", "min_pixels": 16384, "max_pixels": 16384},
        "training": {
            "output_dir": str(folder / "run"),
            "effective_batch_size": PER_STEP,
            "per_device_train_batch_size": PER_STEP,
            "max_steps": 10**6,
            "save_strategy": "steps",
            "save_steps": 20,
            "save_total_limit": 2,
        },
        "custom": {
            "trainer_variant": "stage2_ab_training",
            "train_jsonl": str(folder / "data" / "train.jsonl"),
            "extra": {
                "stage2_ab": {"schedule": {"pattern": ["A", "A", "B"]}, "guard": {"enabled": False}},
                "rollout_matching": {
                    "rollout_backend": "hf",
                    "max_new_tokens": 120,
                    "rollout_infer_batch_size": 2,
                    "vllm": {"max_num_seqs": 16, "server": {"stall_timeout_s": STALL_S}},
                },
            },
        },
    }


def soaked(soak: Soak, minutes: float, chance: random.Random) -> None:
    """Strike every few seconds until the time is over, then ask the run to stop."""
    next_fault_at = 20.0
    try:
        while soak.now < 60 * minutes and soak.process.poll() is None:
            soak.look()
            if soak.now > next_fault_at and soak.num_steps:
                soak.strike(chance.choice(("kill", "freeze", "hang", "cut", "error")))
                next_fault_at = soak.now + chance.uniform(2, 12)
            time.sleep(0.5)
    finally:
        soak.process.send_signal(signal.SIGTERM)
        soak.process.wait(120)


def lost_or_doubled(folder: Path) -> int:
    """Records that are missing from an epoch, or stand in it twice, and those that were noted as lost."""
    lines = [json.loads(line) for line in (folder / "run" / "ledger.jsonl").read_text().splitlines()]
    trained = [name for line in lines for name in line["trained"]]
    wrong = sum(len(line["lost"]) for line in lines)
    for start in range(0, len(trained), NUM_RECORDS):
        epoch = trained[start : start + NUM_RECORDS]
        wrong += len(epoch) - len(set(epoch))
    return wrong


def growth(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Memory at the end against that after the warm-up, by medians, and MiB a minute by least squares."""
    settled = samples[int(WARM_UP * len(samples)) :]
    quarter = max(1, len(settled) // 4)
    first, last = (statistics.median(mib for _, mib in part) for part in (settled[:quarter], settled[-quarter:]))
    times, sizes = zip(*settled, strict=True)
    return last / first, 60 * statistics.linear_regression(times, sizes).slope


def judged(soak: Soak, seed: int) -> bool:
    """Print a line a measure; whether all is well."""
    pause_s = max(soak.longest_pause_s, 0.0)
    verdicts = [soak.process.returncode == 128 + signal.SIGTERM, pause_s <= LONGEST_PAUSE_S]
    details = {"seed": seed, "steps": soak.num_steps, "faults": len(soak.faults), "seconds": round(soak.now)}
    print_measure("soak", "longest pause", pause_s / LONGEST_PAUSE_S, "<= 1", f"{LONGEST_PAUSE_S:g} s", 1, **details)
    wrong = lost_or_doubled(soak.folder)
    verdicts.append(wrong == 0)
    records = soak.num_steps * PER_STEP
    print_measure("soak", "lost or doubled", wrong / max(1, records), "== 0", "records learned", 1, records=records)
    for name, samples in soak.memory.items():
        ratio, slope = growth(samples)
        verdicts.append(ratio <= MOST_GROWTH)
        print_measure("soak", f"memory {name}", ratio, f"<= {MOST_GROWTH}", "after warm-up", 1,
                      mib=round(samples[-1][1], 1), mib_per_minute=round(slope, 3))  # fmt: skip
    return all(verdicts) and {"learner", "server-0"} <= soak.memory.keys()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="boxloop-soak-") as folder:
        soak = started(Path(folder))
        soaked(soak, options.minutes, random.Random(options.seed))
        well = soak.num_steps > 0 and judged(soak, options.seed)
        if not well:
            kept = Path(folder, "up.log").read_text().splitlines()[-40:]
            print("\n".join(kept), file=sys.stderr)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
