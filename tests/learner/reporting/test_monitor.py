"""Monitor dumps come as often, as many and as long as they are asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.plan.schedule import Channel
from learner.reporting.monitor import Monitor
from learner.reporting.step_report import StepRecord
from learner.reporting.tallies import Tallies
from learner.types import TaughtRollout
from shared.config.rollout import MonitorDumpSection

CAT, DOG = (
    GroundTruthObject(desc, "bbox_2d", bins)
    for desc, bins in (("cat", (1, 2, 300, 400)), ("dog", (500, 500, 900, 900)))
)


@pytest.fixture
def dumped(
    learned_of: Callable[..., TaughtRollout], tiny_folder: Path, image: Callable[..., bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[Path]]:  # fmt: skip
    """Show so many B steps of two answers to a monitor; the JSON files it wrote."""
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(tiny_folder)))
    (tmp_path / "image.png").write_bytes(image(0))
    monkeypatch.chdir(tmp_path)

    async def run(num_steps: int, channel: Channel = Channel.B, resumed_at: int = 0, **section: object) -> list[Path]:
        settings = MonitorDumpSection(**{"enabled": True, **section})
        monitor = Monitor(settings, tmp_path / "pictures", vocabulary, resumed_at)
        learned = [learned_of(answer_text([CAT]), (CAT, DOG)) for _ in range(2)] if channel is Channel.B else []
        for step in range(resumed_at, num_steps):
            await monitor.write(StepRecord(step, channel, 1.0, Tallies(), ("train:1",), tuple(learned), ()))
        return sorted((tmp_path / "pictures").glob("*.json"))

    return run


async def test_a_dump_holds_the_answer_the_target_and_what_was_matched(dumped) -> None:
    (file,) = await dumped(1)
    details = json.loads(file.read_text())
    assert (details["step"], details["record_id"], details["finish_reason"]) == (1, "train:1", "stop")
    assert details["answer"] == answer_text([CAT])
    assert details["target"] == answer_text([CAT, DOG]) + "<|im_end|>"
    assert (details["pairs"], details["missing"], details["extra"]) == ([[0, 0, 1.0]], [1], [])
    assert file.with_suffix(".png").stat().st_size > 0


async def test_dumps_are_so_many_steps_apart(dumped) -> None:
    assert [file.name[:11] for file in await dumped(7, every_steps=3)] == ["step-000001", "step-000004", "step-000007"]


async def test_a_run_makes_no_more_dumps_than_allowed(dumped) -> None:
    assert len(await dumped(5, every_steps=1, max_events=2)) == 2


async def test_a_resumed_run_goes_on_with_the_dumps_of_its_history(dumped, tmp_path: Path) -> None:
    def steps(files: list[Path]) -> list[int]:
        return [int(file.name[5:11]) for file in files]

    assert steps(await dumped(6, every_steps=2, max_events=4)) == [1, 3, 5]
    for file in (tmp_path / "pictures").glob("step-000005*"):
        file.rename(file.with_name(file.name.replace("5", "6", 1)))  # dumps behind the checkpoint do not count
    assert steps(await dumped(12, resumed_at=4, every_steps=2, max_events=4)) == [1, 3, 5, 6, 7]
    assert steps(await dumped(12, resumed_at=8, every_steps=2, max_events=4)) == [1, 3, 5, 6, 7]


async def test_a_new_run_does_not_count_what_lies_there(dumped) -> None:
    await dumped(2, every_steps=1, max_events=2)
    assert len(await dumped(6, every_steps=3, max_events=2)) == 3  # steps 1, 2 and 4


async def test_a_dump_has_no_more_samples_than_allowed(dumped, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Monitor._dump
    monkeypatch.setattr(
        Monitor, "_dump", lambda self, step, samples: (seen.append(len(samples)), real(self, step, samples))
    )
    await dumped(1, max_samples=1)
    await dumped(1, max_samples=4)
    assert seen == [1, 2]


async def test_texts_are_cut_to_length(dumped) -> None:
    (file,) = await dumped(1, max_text_chars=12)
    assert json.loads(file.read_text())["answer"] == answer_text([CAT])[:12]


async def test_steps_without_answers_and_a_monitor_that_is_off_write_nothing(dumped) -> None:
    assert await dumped(3, channel=Channel.A) == []
    assert await dumped(3, enabled=False) == []
