"""A run is wired as its configuration says."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

from learner.data.prompt import Encoder
from learner.data.sample import EncodedRecord
from learner.detection.record import Record
from learner.plan.schedule import Channel
from learner.requests import encode_in_order
from learner.rollouts.remote import RolloutServer
from learner.run import Run
from learner.train import train

pytestmark = pytest.mark.slow

Opened = Callable[..., AbstractAsyncContextManager[Run]]


def first_records(run: Run) -> list[str]:
    return [record.record_id for group in run.planner.plan(0, 0).groups for record in group]


async def test_epochs_and_limits_make_the_length_of_a_run(opened: Opened) -> None:
    keys = ("training.max_steps=-1", "training.num_train_epochs=1.5", "custom.train_sample_limit=16")
    async with opened(*keys, "custom.val_sample_limit=3") as run:
        assert run.progress.num_steps == 6  # 24 of 16 records, 4 a step
        assert {int(name.partition(":")[2]) for name in first_records(run)} <= set(range(1, 17))
        assert (await run.evaluation.run(run.progress)).num_images == 3


async def test_the_seed_decides_the_order(opened: Opened) -> None:
    orders = []
    for seed in (1, 1, 2):
        async with opened(f"training.seed={seed}") as run:
            orders.append(first_records(run))
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("recomputed", [True, False])
async def test_activations_are_recomputed_as_asked(opened: Opened, recomputed: bool) -> None:
    async with opened(f"training.gradient_checkpointing={recomputed}") as run:
        assert run.learner.loaded.model.is_gradient_checkpointing is recomputed


async def test_so_many_images_are_read_at_a_time(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, most = [], []
    real = Encoder.encode_now

    def counted(self: Encoder, record: Record) -> EncodedRecord:
        reading.append(record)
        most.append(len(reading))
        time.sleep(0.05)
        reading.remove(record)
        return real(self, record)

    monkeypatch.setattr(Encoder, "encode_now", counted)
    async with opened("training.dataloader_num_workers=3", "training.effective_batch_size=8") as run:
        (group,) = run.planner.plan(0, 0).groups
        assert len([encoded async for encoded in encode_in_order(group, run.encoder)]) == 8
    assert max(most) == 3


async def test_steps_share_records_of_the_log_but_for_the_first(opened: Opened, tmp_path: Path) -> None:
    async with opened("training.logging_steps=2", "training.logging_first_step=true", "training.max_steps=5") as run:
        with anyio.fail_after(60):
            await train(run)
    lines = [orjson.loads(line) for line in (tmp_path / "run" / "logging.jsonl").read_bytes().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4, 5]


async def test_requests_are_as_large_as_asked_and_servers_hold_no_more_than_the_cap(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = RolloutServer.decode

    async def counted(self: RolloutServer, batch_id: str, requests: Any, *rest: Any) -> AsyncGenerator[Any, None]:
        sizes.append(len(requests))
        async with aclosing(real(self, batch_id, requests, *rest)) as results:
            async for result in results:
                yield result

    monkeypatch.setattr(RolloutServer, "decode", counted)
    keys = ("custom.extra.stage2_ab.schedule.pattern=[B]", "training.max_steps=1")
    for cap, largest in ((None, 4), (3, 3)):
        sizes.clear()
        limits = "custom.extra.rollout_matching.rollout_infer_batch_size=" + str(cap or "null")
        async with opened(*keys, limits) as run:
            with anyio.fail_after(60):
                await train(run)
        assert (sum(sizes), max(sizes)) == (4, largest)


async def test_a_b_step_may_have_another_number_of_records(opened: Opened) -> None:
    async with opened("custom.extra.stage2_ab.channel_b.rollouts_per_step=7") as run:
        sizes = {plan.channel: sum(map(len, plan.groups)) for plan in (run.planner.plan(step, 0) for step in range(3))}
    assert sizes == {Channel.A: 4, Channel.B: 7}
