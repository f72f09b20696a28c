"""A run is wired as its configuration says."""

import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest
import torch
from PIL import Image

from learner.data.encoding import Encoder
from learner.data.opening import open_encoder, reading_of
from learner.detection.record import Record
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.plan.schedule import Channel
from learner.run import Run
from learner.servers.rollouts import RolloutServer
from learner.train import train
from learner.types import EncodedRecord
from shared.config.models import Config
from shared.errors import ConfigError

pytestmark = pytest.mark.slow

Opened = Callable[..., AbstractAsyncContextManager[Run]]
ConfigOf = Callable[..., Config]
ROLLOUT = "custom.extra.rollout_matching"
SERVER = f"{ROLLOUT}.vllm.server"


@pytest.fixture
def vocabulary(checkpoint: Path) -> CoordinateVocabulary:
    return CoordinateVocabulary.from_tokenizer(load_tokenizer(str(checkpoint)))


def first_records(run: Run) -> list[str]:
    return [record.record_id for group in run.planner.plan(0, 0).groups for record in group]


async def test_epochs_and_limits_make_the_length_of_a_run(opened: Opened) -> None:
    keys = ("training.max_steps=-1", "training.num_train_epochs=1.5", "custom.train_sample_limit=16")
    async with opened(*keys, "custom.val_sample_limit=3") as run:
        assert run.progress.num_steps == 6  # 24 of 16 records, 4 a step
        assert {int(name.partition(":")[2]) for name in first_records(run)} <= set(range(1, 17))
        assert (await run.evaluation.run(run.progress)).num_images == 3


async def test_model_servers_and_trackers_are_opened_as_written(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[float | None, ...]] = []

    class Recorded(RolloutServer):
        def __init__(self, client: httpx.AsyncClient, *seconds: Any) -> None:
            limits.append(seconds)
            super().__init__(client, *seconds)

    monkeypatch.setattr("learner.decoding.opening.RolloutServer", Recorded)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with opened(
        "model.dtype=bfloat16",
        "model.attn_impl=eager",
        "training.report_to=tensorboard",
        f"training.metrics_port={port}",
        f"{SERVER}.stall_timeout_s=7",
        f"{SERVER}.infer_timeout_s=8",
    ) as run:
        loaded = run.training.learner.loaded
        assert (loaded.compute_dtype, loaded.attn_impl) == (torch.bfloat16, "eager")
        assert limits == [(7, 8)]
        async with httpx.AsyncClient(trust_env=False) as client:
            assert "boxloop_learner_step" in (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        assert list((tmp_path / "run" / "tensorboard").iterdir()) != []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.metrics_port=TAKEN", "training.metrics_port"),
        ("custom.val_jsonl=WIDE", "^global_max_length: the longest prompt of .*wide.jsonl has"),
    ],
)
async def test_what_can_be_known_is_told_before_a_model_is_loaded(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, said: str
) -> None:
    Image.new("RGB", (512, 512)).save(tmp_path / "wide.png")
    wide = tmp_path / "wide.jsonl"
    wide.write_text('{"images": ["wide.png"], "width": 512, "height": 512, "objects": []}')

    room = f"{ROLLOUT}.max_new_tokens=300"  # enough for the training records

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr("learner.training.opening.load_model", too_late)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match=said):
        async with opened(override.replace("TAKEN", str(taken.getsockname()[1])).replace("WIDE", str(wide)), room):
            pass


@pytest.mark.parametrize(
    ("override", "field", "value", "default"),
    [
        ("custom.coordinate_space=norm1000", "coordinate_space", "norm1000", "px"),
        ("custom.object_ordering=random", "object_ordering", "random", "sorted"),
        ("custom.on_bad_record=skip", "on_bad_record", "skip", "error"),
        ("custom.poly_as_bbox=true", "polygons", "as_bbox", "error"),
    ],
)
def test_records_are_read_as_written(
    config_of: ConfigOf, vocabulary: CoordinateVocabulary, override: str, field: str, value: str, default: str
) -> None:
    assert getattr(reading_of(config_of(), vocabulary, "error"), field) == default
    assert getattr(reading_of(config_of(override), vocabulary, "error"), field) == value


def test_prompts_are_made_as_written(config_of: ConfigOf, checkpoint: Path) -> None:
    tokenizer = load_tokenizer(str(checkpoint))

    def encoder_of(*overrides: str) -> Encoder:
        return open_encoder(config_of(*overrides), checkpoint, tokenizer)

    def image_tokens(width: int, *overrides: str) -> int:
        encoder = encoder_of(*overrides)
        return encoder.num_prompt_tokens(width, width) - len(encoder.request_token_ids) + 1

    text = tokenizer.decode(encoder_of("template.system=Be brief.", "custom.user_prompt=Count.").request_token_ids)
    assert "Be brief." in text
    assert "Count." in text
    assert "Be brief." not in tokenizer.decode(encoder_of().request_token_ids)
    assert (image_tokens(256), image_tokens(256, f"template.max_pixels={128 * 128}")) == (64, 16)
    assert (image_tokens(32), image_tokens(32, f"template.min_pixels={128 * 128}")) == (1, 16)


async def test_the_seed_decides_the_order(opened: Opened) -> None:
    orders = []
    for seed in (1, 1, 2):
        async with opened(f"training.seed={seed}") as run:
            orders.append(first_records(run))
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("recomputed", [True, False])
async def test_activations_are_recomputed_as_asked(opened: Opened, recomputed: bool) -> None:
    async with opened(f"training.gradient_checkpointing={recomputed}") as run:
        assert run.training.learner.loaded.model.is_gradient_checkpointing is recomputed


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
        assert len([encoded async for encoded in run.sources.encoder.encode_in_order(group)]) == 8
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
    rollout = "custom.extra.rollout_matching"
    for cap, fixed in ((1, False), (3, True)):
        sizes.clear()
        limits = f"{rollout}.rollout_infer_batch_size={cap}", f"{rollout}.deterministic={str(fixed).lower()}"
        async with opened(*keys, *limits) as run:
            with anyio.fail_after(60):
                await train(run)
        assert sizes == ([3, 1] if fixed else [1, 1, 1, 1])


async def test_a_b_step_may_have_another_number_of_records(opened: Opened) -> None:
    async with opened("custom.extra.stage2_ab.channel_b.rollouts_per_step=7") as run:
        sizes = {plan.channel: sum(map(len, plan.groups)) for plan in (run.planner.plan(step, 0) for step in range(3))}
    assert sizes == {Channel.A: 4, Channel.B: 7}
