"""Whole runs by the `boxloop` command: a real server process, a real learner process, a model that answers a little."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from shared.config.load import load_config
from tests.end_to_end.faults import DISTURBED_UP, NUM_STEPS, SHORT_RUN, records_of
from tests.weights_folder import weights_of

ROOT = Path(__file__).parents[2]
MARK = "BOXLOOP_TEST_RUN"
"""Environment variable that every process of a run inherits."""

CONFIG = {
    "extends": str(ROOT / "configs" / "base.yaml"),
    "global_max_length": 512,
    "model": {"dtype": "float32"},
    "template": {"system": "", "min_pixels": 16384, "max_pixels": 16384},
    "training": {
        "effective_batch_size": 6,
        "per_device_train_batch_size": 6,
        "learning_rate": 2.0e-3,
        "optim": "muon",
        "save_strategy": "steps",
        "save_steps": 3,
    },
    "custom": {
        "user_prompt": "Detect all objects.",
        "extra": {
            "rollout_matching": {
                "rollout_backend": "hf",
                "max_new_tokens": 120,
                "deterministic": True,
                "vllm": {"max_num_seqs": 16},
            },
        },
    },
}
STAGE1 = {"training": {"max_steps": 60, "save_steps": 60, "save_only_model": True, "effective_batch_size": 12,
                       "per_device_train_batch_size": 12},
          "custom": {"trainer_variant": "stage1_sft"}}  # fmt: skip
STAGE2 = {"training": {"max_steps": 6, "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 6},
          "custom": {"trainer_variant": "stage2_ab_training",
                     "extra": {"stage2_ab": {"schedule": {"pattern": ["A", "A", "B"]}},
                               "rollout_matching": {"monitor_dump": {"enabled": True}}}}}  # fmt: skip


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return {**base, **over, **both}


@dataclass
class Command:
    """One `boxloop …` in a session of its own, with all that it started."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str
    told: str = ""

    def end(self, timeout_s: float = 180) -> int:
        """Wait for it; the exit code. `told` is then what it printed."""
        self.told = self.process.communicate(timeout=timeout_s)[0]
        return self.process.returncode

    def wait_for(self, happened: Callable[[], object], timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.process.stdout.read()}"
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)

    def log(self, name: str = "logging.jsonl") -> list[dict[str, Any]]:
        """The records so far."""
        return records_of(self.folder, name)

    def said(self, name: str = "learner") -> str:
        """The log of one of its processes."""
        return (self.folder / f"{name}.log").read_text()

    def pids(self) -> list[int]:
        """Living processes of this run, the supervisor among them."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:  # it has just ended, or is not ours
                continue
        return found

    def clear(self) -> None:
        """End what is left of it, and free the shared memory that a killed supervisor could not."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()
        resolved = self.folder / "config.resolved.yaml"
        if resolved.exists():
            shutil.rmtree(weights_of(load_config(resolved)), ignore_errors=True)


Start = Callable[..., Command]


def start_command(arguments: Sequence[str], folder: Path, program: Sequence[str] = ("-m", "compose")) -> Command:
    mark, (first, *others) = uuid4().hex, arguments
    asking = ("wait_interval=0.1",) if first == "up" else ()  # tiny models load in seconds
    process = subprocess.Popen(
        [sys.executable, *program, first, *asking, *others],
        env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return Command(process, folder, mark)


def write_config(path: Path, shapes: Path, model: Path, values: dict[str, Any]) -> Path:
    own = {
        "model": {"model": str(model)},
        "training": {"output_dir": str(path.parent / "run")},
        "custom": {"train_jsonl": str(shapes / "train.jsonl"), "val_jsonl": str(shapes / "val.jsonl")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(merged(merged(CONFIG, values), own)))
    return path


@pytest.fixture(scope="session")
def stage1(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that mostly answers in the format, made by `boxloop up` without a server."""
    from learner.model.tiny import build_tiny

    folder = tmp_path_factory.mktemp("stage1")
    build_tiny(folder / "tiny", seed=2)
    config = write_config(folder / "config.yaml", shapes, folder / "tiny", STAGE1)
    command = start_command(["up", f"config={config}"], folder / "run")
    assert command.end() == 0, command.told
    assert not list((folder / "run").glob("server-*.log"))
    return folder / "run" / "checkpoint-60"


@pytest.fixture(scope="session")
def config_for(shapes: Path) -> Callable[[Path, Path], Path]:
    """Write the configuration of six steps A, A, B, A, A, B from a model into a folder."""
    return lambda folder, model: write_config(folder / "config.yaml", shapes, model, STAGE2)


@pytest.fixture(scope="session")
def config_of(config_for: Callable[[Path, Path], Path], stage1: Path) -> Callable[[Path], Path]:
    """The same from the Stage-1 checkpoint."""
    return lambda folder: config_for(folder, stage1)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `boxloop ARGUMENTS…`; nothing of it outlives the test."""
    started: list[Command] = []

    def run(*arguments: object, folder: Path | None = None, program: Sequence[str] = ("-m", "compose")) -> Command:
        started.append(start_command([str(each) for each in arguments], folder or tmp_path / "run", program))
        return started[-1]

    yield run
    for command in started:
        command.clear()


def finished(arguments: Sequence[str], folder: Path, program: Sequence[str] = ("-m", "compose")) -> Command:
    """Run a command that writes into `folder` to its good end."""
    command = start_command(arguments, folder, program)
    try:
        code = command.end()
    finally:
        command.clear()
    assert code == 0, command.told
    return command


@pytest.fixture(scope="session")
def six_steps(config_of: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A finished run; treat its folder as read-only."""
    folder = tmp_path_factory.mktemp("six")
    return finished(["up", f"config={config_of(folder)}", "server_port=0"], folder / "run")


@pytest.fixture(scope="session")
def start_once() -> Callable[..., Command]:
    """Run a command to its good end, for fixtures that several tests share."""
    return finished


@pytest.fixture(scope="session", params=["scripted", pytest.param("hf", marks=pytest.mark.very_slow)])
def engine(request: pytest.FixtureRequest) -> str:
    """What decodes in the runs that a test disturbs; with a real model by `make test-slow`."""
    return request.param


@pytest.fixture(scope="session")
def script_of(engine: str, stage1: Path) -> Callable[..., dict[str, Any]]:
    """What befalls servers; scripted ones also need to know what to say: one object, half a second long."""
    if engine != "scripted":
        return dict
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(stage1)))
    text = answer_text([GroundTruthObject("red circle", "bbox_2d", (100, 200, 300, 400))])
    answer = [*vocabulary.encode(text), min(vocabulary.stop_ids)]
    return lambda **faults: {"default": answer, "seconds_per_token": 0.5 / len(answer), **faults}


@pytest.fixture(scope="session")
def undisturbed(engine: str, config_of, script_of, start_once, tmp_path_factory) -> Path:
    """The last checkpoint of a run without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "script.json").write_text(json.dumps(script_of(seconds_per_token=0)))
    arguments = (engine, str(folder / "script.json"), "", f"config={config_of(folder)}", *SHORT_RUN)
    return start_once(arguments, folder / "run", DISTURBED_UP).folder / f"checkpoint-{NUM_STEPS}"


@pytest.fixture
def up(start, engine: str, config_of, script_of, tmp_path: Path) -> Callable[..., Command]:
    """Start the run that `undisturbed` is the end of, with servers that a test disturbs.

    `stops` are moments at which the learner stops itself (see stopped_learner.py). The run lies in `folder`.
    """

    def run(*arguments: str, folder: Path = tmp_path, stops: str = "", **script: object) -> Command:
        (tmp_path / "script.json").write_text(json.dumps(script_of(**script)))
        given = (engine, tmp_path / "script.json", stops, f"config={config_of(folder)}", *SHORT_RUN, *arguments)
        return start(*given, folder=folder / "run", program=DISTURBED_UP)

    return run


@pytest.fixture
def late(undisturbed: Path) -> Callable[..., dict[str, float]]:
    """Delays of a script: the answers of these steps take `seconds` longer, all of them or those at some places."""
    steps = {line["step"]: line["trained"] for line in records_of(undisturbed.parent, "ledger.jsonl")}
    return lambda *wanted, seconds, at=slice(None): {name: seconds for step in wanted for name in steps[step][at]}
