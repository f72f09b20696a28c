"""Hours in minutes: a run whose servers and learner are killed, frozen, stalled and cut at random, seen from outside.

`python -m benchmarks.soak --minutes 20 --seed 0`. Everything is real (supervisor, HTTP, processes, signals, training)
but the model behind the servers, which plays a script. A killed learner is resumed. It prints a line a measure and ends
with 1 unless steps went on all the time, every record of every epoch was learned exactly once, and the memory of each
process that lived for a while stayed flat (soak_verdict.py).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.measure import print_measure
from benchmarks.soak_verdict import Seen, verdicts_on
from learner.checkpoints.checkpoint import latest_checkpoint
from learner.data.shapes import render_shapes
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.model.tiny import build_tiny
from shared.config.shipped import shipped_configs

NUM_RECORDS, PER_STEP = 64, 8
ANSWER_S, STALL_S = 0.4, 3.0
LEARNER_KILLS = 2
"""All in the first half: the last learner, and the servers that start with it, then live long enough to be judged."""
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
DEADLY, HARMLESS = ("hang", "die"), ("cut", "error")
"""Faults that the script plays when it is told to: those that end a server, and those that it survives."""
BASE = shipped_configs() / "base.yaml"


@dataclass
class Soak:
    """One run, as often as its learner is killed, and what was seen of it."""

    folder: Path
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    seen: Seen = field(default_factory=Seen)
    faults: list[str] = field(default_factory=list)
    num_steps: int = 0

    @property
    def now(self) -> float:
        return time.monotonic() - self.started_at

    def look(self) -> None:
        """Take one sample of progress and of every process's memory."""
        num_steps = len(self.ledger())
        if num_steps > self.num_steps:
            self.seen.step_times.append(self.now)
        self.num_steps = num_steps  # a resume takes back what came after its checkpoint
        for name, pid in self.children().items():
            if mib := resident_mib(pid):
                self.seen.memory.setdefault((name, pid), []).append((self.now, mib))

    def ledger(self) -> list[dict[str, object]]:
        """Its whole lines."""
        path = self.folder / "run" / "ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def children(self) -> dict[str, int]:
        """Pids of learner and servers; the one with the lower port is called server-0 here, and is never ended."""
        children: dict[str, int] = {}
        servers = self.servers()
        for pid in children_of(self.process.pid):
            if "learner" in words_of(pid):
                children["learner"] = pid
        return children | {f"server-{index}": pid for index, (_, pid) in enumerate(servers) if len(servers) == 2}

    def servers(self) -> list[tuple[int, int]]:
        """(port, pid) of the servers, by port."""
        found = []
        for pid in children_of(self.process.pid):
            words = words_of(pid)
            if "rollout_server" in words:
                found.append((int(words[words.index("--port") + 1]), pid))
        return sorted(found)

    def strike(self, fault: str, chance: random.Random) -> None:
        """Kill, freeze or order a fault of the second server; faults that a server survives are for either."""
        servers = self.servers()
        if len(servers) < 2:  # the second is on its way back
            return
        port, pid = servers[chance.randrange(2) if fault in HARMLESS else 1]
        if fault in SIGNALS:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGNALS[fault])
        else:
            orders = self.folder / f"orders-{port}"
            orders.mkdir(exist_ok=True)
            (orders / fault).touch()
        self.faults.append(fault)

    @property
    def is_up(self) -> bool:
        """Whether the learner is there; before, a server that dies ends the run, as it should."""
        return "learner" in self.children()

    def kill_learner(self) -> None:
        """Kill the learner, wait until the supervisor has ended everything, and resume."""
        os.kill(self.children()["learner"], signal.SIGKILL)
        self.ended(expected=1)
        self.process = launched(self.folder, "training.resume_from_checkpoint=true")
        self.faults.append("learner killed")

    def ended(self, expected: int) -> None:
        """Wait for the supervisor and note an exit code that is not `expected`."""
        code = self.process.wait(120)
        if code != expected:
            self.seen.wrong_exits.append(code)


def children_of(pid: int) -> list[int]:
    """The child processes; none when it has ended."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def words_of(pid: int) -> list[str]:
    """The command line of a process; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def resident_mib(pid: int) -> float:
    """Resident memory of a process, 0 when it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def started(folder: Path) -> Soak:
    """Render the data, build the model, write script and configuration, and start the run."""
    rendered = sum(render_shapes(folder / "data", train=NUM_RECORDS, val=1, seed=0, num_workers=1))
    assert rendered == NUM_RECORDS + 1
    build_tiny(folder / "tiny")
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(folder / "tiny")))
    text = answer_text([GroundTruthObject("red circle", "bbox_2d", (100, 200, 300, 400))])
    answer = [*vocabulary.encode(text), min(vocabulary.stop_ids)]
    orders = str(folder / "orders-{port}")
    script = {"default": answer, "seconds_per_token": ANSWER_S / len(answer), "orders": orders}
    (folder / "script.json").write_text(json.dumps(script))
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(folder)))
    return Soak(folder, launched(folder))


def launched(folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    arguments = (folder / "script.json", f"config={folder / 'config.yaml'}", "server_port=0", "server_gpus=0,1",
                 "train_gpus=2", "max_restarts=100000", "wait_interval=0.1", *overrides)  # fmt: skip
    with (folder / "up.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.scripted_run", *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


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
            "save_steps": 10,
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
    end, next_fault_at = 60 * minutes, 20.0
    kills = sorted(chance.uniform(0.1, 0.5) * end for _ in range(LEARNER_KILLS))
    try:
        while soak.now < end and soak.process.poll() is None:
            soak.look()
            if kills and soak.now > kills[0] and soak.is_up and latest_checkpoint(soak.folder / "run"):
                del kills[0]
                soak.kill_learner()
            elif soak.now > next_fault_at and soak.is_up:
                soak.strike(chance.choice((*SIGNALS, *DEADLY, *HARMLESS)), chance)
                next_fault_at = soak.now + chance.uniform(2, 12)
            time.sleep(0.5)
        soak.look()
    finally:
        soak.seen.ended_at = soak.now
        soak.process.send_signal(signal.SIGTERM)
        soak.ended(expected=128 + signal.SIGTERM)


def judged(soak: Soak, seed: int) -> bool:
    """Print a line a measure; whether all is well."""
    verdicts = verdicts_on(soak.seen, soak.ledger(), NUM_RECORDS, PER_STEP)
    for each in verdicts:
        details = {"seed": seed, "faults": len(soak.faults), **each.details}
        print_measure("soak", each.measure, each.ratio, each.aim, each.baseline, 1, **details)
    return all(each.is_well for each in verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="3 at least: less is too short to be judged")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="boxloop-soak-") as folder:
        soak = started(Path(folder))
        soaked(soak, options.minutes, random.Random(options.seed))
        well = judged(soak, options.seed)
        if not well:
            kept = Path(folder, "up.log").read_text().splitlines()[-40:]
            print("\n".join(kept), file=sys.stderr)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
