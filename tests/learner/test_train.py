"""The training loop in this process, over a real server that answers what a script says."""

import asyncio
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
import torch
from rich.console import Console

from learner.build import open_run
from learner.families.load import load_tokenizer
from learner.packing.packer import NoPacking
from learner.plan.time_split import LearnerActivity, ServerActivity
from learner.reporting.collapse_guard import RunLeftItsBands
from learner.reporting.step_report import RecordsMiscounted
from learner.run import Run
from learner.servers import rollouts
from learner.train import train
from learner.types import TrainingSample
from learner.weight_sync.snapshot import full_weights
from shared.config.models import Config
from shared.errors import ConfigError, NonFiniteLoss, ProtocolError, ServerUnavailable, WeightSyncFailed

pytestmark = pytest.mark.slow

Opened = Callable[..., AbstractAsyncContextManager[Run]]
B_ONLY = "custom.extra.stage2_ab.schedule.pattern=[B]"
GUARD = "custom.extra.stage2_ab.guard"
PATIENCE = "custom.extra.rollout_matching.vllm.server.timeout_s=2"


def logged(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "run" / "logging.jsonl").read_bytes().splitlines()]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in full_weights(run.training.learner.loaded).items()}


def unmoved(run: Run, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in full_weights(run.training.learner.loaded).items())


def has_gradient(run: Run) -> bool:
    return any(parameter.grad is not None for parameter in run.training.learner.loaded.model.parameters())


async def trained(run: Run) -> None:
    with anyio.fail_after(60):
        await train(run)


async def test_a_b_step_keeps_what_was_found_and_appends_what_was_missed(opened: Opened, tmp_path: Path) -> None:
    async with opened() as run:
        await trained(run)
        assert (run.progress.step, run.progress.cursor) == (3, 12)
    *_, b_step = logged(tmp_path)
    assert b_step["channel"] == "B"
    assert b_step["rollout/precision"] == 1
    assert b_step["rollout/matched_for_supervision"] == 4
    assert b_step["rollout/fn_appended"] == 4 * b_step["rollout/gt_objects"] - 4
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


async def test_each_record_is_asked_as_it_says_in_training_and_evaluation(
    opened: Opened, checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "val"):
        lines = [orjson.loads(line) for line in (shapes / f"{name}.jsonl").read_bytes().splitlines()]
        asking = ({"prompt": f"Own of {name}?"}, {"classes": [name, "cat"]})
        for number, line in enumerate(lines):
            line.update(images=[str(shapes / line["images"][0])], **asking[number % 2])
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    sent: set[tuple[int, ...]] = set()
    samples_of = rollouts.wire_samples

    def noted(requests: Any) -> Any:
        samples = samples_of(requests)
        sent.update(sample.prompt_token_ids for sample in samples)
        return samples

    monkeypatch.setattr(rollouts, "wire_samples", noted)
    files = (f"custom.{name}_jsonl={tmp_path / f'{name}.jsonl'}" for name in ("train", "val"))
    keys = ("custom.user_prompt=Find {classes}.", "training.eval_strategy=steps", "training.eval_steps=3", B_ONLY)
    async with opened(*files, *keys) as run:
        await trained(run)
    steps = [line for line in logged(tmp_path) if "rollout/precision" in line]
    assert [step["rollout/precision"] for step in steps] == [1, 1, 1]
    tokenizer = load_tokenizer(str(checkpoint))
    asked = {
        tokenizer.decode(token_ids).partition("<|vision_end|>")[2].partition("<|im_end|>")[0] for token_ids in sent
    }
    assert asked == {"Own of train?", "Own of val?", "Find train, cat.", "Find val, cat."}


async def test_a_run_that_resumes_an_older_checkpoint_gives_up_the_later_ones(opened: Opened, tmp_path: Path) -> None:
    keys = ("custom.trainer_variant=stage1_sft", "training.save_steps=1")
    folder = tmp_path / "run"
    async with opened(*keys) as run:
        await trained(run)
    async with opened(*keys, f"training.resume_from_checkpoint={folder / 'checkpoint-1'}") as run:
        assert {path.name for path in folder.glob("**/checkpoint-*")} == {f"checkpoint-{step}" for step in (1, 2, 3)}
        assert run.progress.step == 1
    async with opened(*keys, "training.resume_from_checkpoint=true") as run:
        assert run.progress.step == 1
        await trained(run)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3]
    assert {path.name for path in folder.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (1, 2, 3)}
    assert {path.name for path in folder.glob("abandoned-1/*")} == {"checkpoint-2", "checkpoint-3"}


async def test_an_evaluation_leaves_the_checkpoints_of_a_training_alone(
    config_of: Callable[..., Config], shapes: Path, tmp_path: Path
) -> None:
    later = tmp_path / "run" / "checkpoint-9"
    later.mkdir(parents=True)
    config = config_of("custom.trainer_variant=stage1_sft", f"custom.train_jsonl={shapes / 'train.jsonl'}")
    async with open_run(config, Console(file=io.StringIO()), config.training.output_dir / "evaluation"):
        assert later.is_dir()


async def test_evaluations_stand_where_they_were_asked_for(opened: Opened, tmp_path: Path) -> None:
    keys = ("training.eval_on_start=true", "training.eval_strategy=steps", "training.eval_steps=2")
    async with opened(*keys, "training.save_strategy=best") as run:
        await trained(run)
    kinds = [(line["step"], line.get("channel", "eval")) for line in logged(tmp_path)]
    assert kinds == [(0, "eval"), (1, "A"), (2, "A"), (2, "eval"), (3, "B"), (3, "eval")]
    first = logged(tmp_path)[0]
    assert (first["eval_rollout_precision"], first["eval_rollout_matched"]) == (1, 8)
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}


async def test_an_evaluation_that_reads_few_records_ahead_scores_every_one_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with opened(faults={"val:5": "error"}) as run:
        whole = await run.evaluation.run(run.progress)
        lap = run.decoding.account.lap()
        assert lap.learner[LearnerActivity.SYNCING] > 0
        assert lap.servers[ServerActivity.SYNCING] > 0
        monkeypatch.setattr("learner.data.encoding.MOST_ENCODED", 3)
        assert await run.evaluation.run(run.progress) == whole
    assert whole.metrics["eval_rollout_matched"] == whole.metrics["eval_rollout_pred_objects"] == 7
    assert (whole.num_images, whole.metrics["eval_rollout_lost"]) == (8, 1)
    assert len(list((tmp_path / "run" / "pictures").glob("eval-000000-val-*.png"))) == 7


async def test_lost_samples_are_noted_and_the_step_goes_on(opened: Opened, tmp_path: Path) -> None:
    odd = {f"train:{number}": "error" for number in range(1, 65, 2)}
    async with opened(B_ONLY, "training.max_steps=2", faults=odd) as run:
        before = weights(run)
        await trained(run)
        assert not unmoved(run, before)
    ledger = [orjson.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_bytes().splitlines()]
    assert [line["step"] for line in ledger] == [1, 2]
    for line in ledger:
        assert line["trained"]
        assert line["lost"]
        assert set(line["lost"]) <= set(odd)
        assert not set(line["trained"]) & set(odd)
        assert len(line["trained"]) + len(line["lost"]) == 4


async def test_a_step_that_loses_every_answer_is_an_error(opened: Opened) -> None:
    async with opened(B_ONLY, faults={f"train:{number}": "error" for number in range(1, 65)}) as run:
        before = weights(run)
        with pytest.raises(ProtocolError, match="every answer was lost"):
            await trained(run)
        assert unmoved(run, before)


class Doubling(NoPacking):
    """Hands out every third target twice in place of the fourth: packs are as many as they should be."""

    def add(self, sample: TrainingSample) -> None:
        super().add(self.before if self.num_added % 4 == 3 else sample)
        self.before, self.num_added = sample, self.num_added + 1

    num_added = 0


async def test_an_answer_that_is_learned_twice_in_place_of_another_moves_nothing(
    opened: Opened, tmp_path: Path
) -> None:
    async with opened(B_ONLY) as run:
        before = weights(run)
        with pytest.raises(RecordsMiscounted, match=r"step 0: neither .*train:.* too often: .*train:"):
            await trained(replace(run, packer=Doubling(512)))
        assert unmoved(run, before)
    assert not (tmp_path / "run" / "ledger.jsonl").read_text()


async def test_a_server_that_is_lost_leaves_the_weights_of_the_last_whole_step(opened: Opened) -> None:
    dead = {f"train:{number}": "die" for number in range(1, 65)}
    async with opened(B_ONLY, PATIENCE, faults=dead) as run:
        before = weights(run)
        with pytest.raises(ServerUnavailable, match="no rollout server is left"):
            await trained(run)
        assert unmoved(run, before)
        assert run.progress.step == 0


async def test_a_publish_that_fails_ends_the_run_before_anything_is_decoded(opened: Opened) -> None:
    async with opened(B_ONLY, fail_loads=1) as run:
        with pytest.raises(WeightSyncFailed):
            await trained(run)
        assert run.progress.step == 0


async def test_a_loss_that_is_not_finite_moves_nothing(opened: Opened) -> None:
    async with opened() as run:
        name, parameter = next(iter(run.training.learner.loaded.model.named_parameters()))
        with torch.no_grad():
            parameter.view(-1)[0] = float("nan")
        before = weights(run)
        with pytest.raises(NonFiniteLoss, match="train:"):
            await trained(run)
        assert all(torch.equal(tensor, before[other]) for other, tensor in weights(run).items() if other != name)


async def test_cancelling_in_the_middle_of_a_step_applies_no_half_of_it(opened: Opened) -> None:
    delays = {f"train:{number}": 30.0 for number in range(1, 65, 2)}
    async with opened(B_ONLY, "training.packing_min_fill_ratio=0.01", delays=delays) as run:
        before = weights(run)
        task = asyncio.ensure_future(train(run))
        with anyio.fail_after(20):
            while not has_gradient(run):  # noqa: ASYNC110 - it comes from the compute lane
                await anyio.sleep(0.02)
        task.cancel()
        with anyio.fail_after(5), pytest.raises(asyncio.CancelledError):
            await task
        assert unmoved(run, before)


async def test_the_guard_can_end_a_run_whose_answers_go_astray(opened: Opened, tmp_path: Path) -> None:
    keys = (f"{GUARD}.window=1", f"{GUARD}.action=stop")
    babble = {f"train:{number}": [30] for number in range(1, 65)}
    async with opened(B_ONLY, *keys, answers=babble) as run:
        with pytest.raises(RunLeftItsBands, match="sample_sound_rate"):
            await trained(run)
    assert [line["step"] for line in logged(tmp_path)] == [1]


async def test_the_guard_warns_in_the_log(opened: Opened, tmp_path: Path) -> None:
    babble = {f"train:{number}": [30] for number in range(1, 65)}
    async with opened(B_ONLY, f"{GUARD}.window=1", answers=babble) as run:
        await trained(run)
    warnings = [line for line in logged(tmp_path) if "warning" in line]
    assert [line["step"] for line in warnings] == [1]
    assert "prefix_extras: drop" in warnings[0]["warning"]


async def test_a_server_of_another_model_is_refused(opened: Opened, tmp_path: Path) -> None:
    from learner.model.tiny import build_tiny

    build_tiny(tmp_path / "fused", tokenizer="fused")
    with pytest.raises(ConfigError, match="another tokenizer"):
        async with opened(f"model.model={tmp_path / 'fused'}"):
            pass
