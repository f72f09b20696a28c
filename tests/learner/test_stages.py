"""From a step's records to packs, over a real server whose answers come when a script says."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest

from learner.channels.channel import Sources
from learner.channels.rollout_matching import RolloutSteps
from learner.channels.target_maker import TargetMaker
from learner.channels.teacher_forcing import GroundTruthSteps
from learner.data.encoding import Encoder
from learner.decoding.ahead import Decoder, DecodingRules
from learner.decoding.pool import RolloutPool
from learner.decoding.requests import decode_requests, sampling_seed
from learner.detection.matching import MatchingConfig
from learner.detection.record import Record
from learner.detection.targets import TargetWeights
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.packing.pack_feed import GroupPacker
from learner.packing.packer import NoPacking, OnePack, Pack, Packer
from learner.plan.planner import Planner
from learner.plan.schedule import Channel
from learner.plan.step_plan import StepPlan, StepTotals
from learner.plan.time_split import LearnerActivity, RunAccount
from learner.reporting.step_report import StepReport
from learner.servers.rollouts import RolloutServer
from learner.stages import SamplesOf, packed, samples_of
from learner.training.lane import ComputeLane
from learner.types import EncodedRecord, RolloutRequest, StepResult, TrainingSample
from shared.accounting import TimeAccount
from shared.errors import DataError, ServerUnavailable
from shared.wire import Sampling

CAPACITY = 2048


def no_objective(*_: object) -> NoReturn:
    raise AssertionError("nothing is learned here")


@pytest.fixture(scope="module")
def targets(checkpoint: Path) -> TargetMaker:
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(str(checkpoint)))
    return TargetMaker(vocabulary, MatchingConfig(), TargetWeights(), CAPACITY)


@pytest.fixture
def step_of(requests_of: Callable[[int], list[RolloutRequest]]) -> Callable[..., StepPlan]:
    """A B step over `count` records in `groups` equal groups."""

    def plan(count: int, groups: int = 1) -> StepPlan:
        records = tuple(request.encoded.record for request in requests_of(count))
        size = count // groups
        parts = tuple(records[start : start + size] for start in range(0, count, size))
        return StepPlan(2, Channel.B, 0.5, parts, StepTotals.of(records), count)

    return plan


class HeldAlready:
    """Stands for the publisher where weights play no part: servers decode with those they started with."""

    version, seconds, left_out = None, 0.0, ()

    async def publish_if_stale(self, step: int) -> "HeldAlready":
        return self


def no_account() -> RunAccount:
    return RunAccount(TimeAccount(LearnerActivity), [])


class Rig:
    """The stages that feed one step from one server."""

    def __init__(
        self, running: Any, encoder: Encoder, targets: TargetMaker, streaming: bool = True, in_order: bool = False
    ) -> None:
        self.client = running.client()
        sampling = Sampling(max_new_tokens=4, stop_token_ids=(7,))
        pool = RolloutPool([RolloutServer(self.client, 5.0)], sampling)
        planner = Planner(("B",), {}, {}, 1, record_at=lambda cursor: pytest.fail("no other step is planned"))
        rules = DecodingRules(run_seed=3, num_steps=9, streaming=streaming, in_order=in_order)
        self.account = no_account()
        self.decoder = Decoder(planner, encoder, pool, HeldAlready(), self.account, rules)  # type: ignore[arg-type]
        self.sources, self.in_order = Sources(encoder, self.decoder), in_order
        self.kind = RolloutSteps(targets, no_objective)

    @asynccontextmanager
    async def samples(self, step: StepPlan, report: StepReport | None = None) -> AsyncIterator[SamplesOf]:
        report = report or StepReport(step, self.account)
        async with self.client, self.decoder.running():
            await self.decoder.open_next(step)
            yield samples_of(step, self.kind, self.sources, report.add_taught)

    async def names(self, step: StepPlan) -> list[str]:
        with anyio.fail_after(20):
            async with self.samples(step) as samples_of_group, aclosing(samples_of_group(0)) as samples:
                return [sample.target.record_id async for sample in samples]

    @asynccontextmanager
    async def packs(
        self, step: StepPlan, packer: GroupPacker[TrainingSample]
    ) -> AsyncIterator[AsyncIterator[Pack[TrainingSample]]]:
        async with (
            self.samples(step) as samples,
            packed(step, samples, packer, lambda pack: pack, self.in_order) as packs,
        ):
            yield packs


async def until(happened: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not happened():  # noqa: ASYNC110 - the server runs on another thread
            await anyio.sleep(0.01)


LAST_FIRST = {"delays": {"data:1": 0.5, "data:2": 0.25}}


@pytest.mark.parametrize(("in_order", "expected"), [(False, [3, 2, 1]), (True, [1, 2, 3])])
async def test_targets_come_as_answers_finish_or_in_record_order(
    serving, scripted, encoder, targets, step_of, in_order: bool, expected: list[int]
) -> None:
    with serving(scripted(LAST_FIRST)) as running:
        names = await Rig(running, encoder, targets, in_order=in_order).names(step_of(3))
    assert names == [f"data:{number}" for number in expected]


@pytest.mark.parametrize("streaming", [True, False])
async def test_only_streaming_learns_before_the_last_answer(
    serving, scripted, encoder, targets, step_of, streaming: bool
) -> None:
    step = step_of(3)
    with serving(scripted({"delays": {"data:1": 0.4}})) as running:
        source = Rig(running, encoder, targets, streaming=streaming).samples(step)
        async with source as of_group, aclosing(of_group(0)) as samples:
            await anext(samples)
            assert (running.engine.load().running > 0) is streaming


async def test_a_lost_sample_is_reported_and_the_others_are_taught(
    serving, scripted, encoder, targets, step_of
) -> None:
    step = step_of(3)
    report = StepReport(step, no_account())
    with serving(scripted({"faults": {"data:2": "error"}})) as running:
        rig = Rig(running, encoder, targets)
        async with rig.samples(step, report) as of_group, aclosing(of_group(0)) as samples:
            names = sorted([sample.target.record_id async for sample in samples])
    assert names == ["data:1", "data:3"]
    with ComputeLane() as lane:
        lost = report.closed(StepResult(0.0, {}, 0.0, 0.0, 0.0), lane).lost
    assert [each.request.uid for each in lost] == ["data:2"]


async def test_a_record_may_stand_in_a_step_twice(serving, scripted, encoder, targets, step_of) -> None:
    step = step_of(2)
    first, second = step.groups[0]
    step = replace(step, groups=((first, second, first),))
    with serving(scripted()) as running:
        assert Counter(await Rig(running, encoder, targets).names(step)) == {"data:1": 2, "data:2": 1}
        assert await Rig(running, encoder, targets, in_order=True).names(step) == ["data:1", "data:2", "data:1"]


async def test_packs_hold_every_target_once_and_no_group_shares_one(
    serving, scripted, encoder, targets, step_of
) -> None:
    step = step_of(6, groups=3)
    with serving(scripted()) as running:
        async with Rig(running, encoder, targets).packs(step, OnePack(CAPACITY)) as packs:
            names = [sorted(item.target.record_id for item in pack.items) async for pack in packs]
    assert names == [["data:1", "data:2"], ["data:3", "data:4"], ["data:5", "data:6"]]


async def test_in_order_packs_do_not_depend_on_when_answers_come(serving, scripted, encoder, targets, step_of) -> None:
    step, made = step_of(6), []
    for delays in ({}, {"data:1": 0.2, "data:4": 0.1}):
        with serving(scripted({"delays": delays})) as running:
            async with Rig(running, encoder, targets, in_order=True).packs(step, Packer(200, 0.7)) as packs:
                made.append([[item.target for item in pack.items] async for pack in packs])
    assert made[0] == made[1]
    assert len(made[0]) > 1


async def test_an_idle_learner_gets_what_there_is_while_the_rest_is_still_decoded(
    serving, scripted, encoder, targets, step_of
) -> None:
    step = step_of(4)
    with serving(scripted({"delays": {"data:3": 0.6, "data:4": 0.6}})) as running:
        async with Rig(running, encoder, targets).packs(step, Packer(CAPACITY, min_fill=1.0)) as packs:
            names = [{item.target.record_id for item in pack.items} async for pack in packs]
    early = list(itertools.takewhile({"data:3", "data:4"}.isdisjoint, names))
    assert set().union(*early) == {"data:1", "data:2"}
    assert set().union(*names[len(early) :]) == {"data:3", "data:4"}


async def learned(rig: Rig, step: StepPlan, learn: Callable[[Pack[TrainingSample]], object]) -> None:
    """What the training loop does with packs."""
    async with rig.packs(step, Packer(CAPACITY, 0.7)) as packs:
        async for pack in packs:
            learn(pack)


async def test_a_learner_that_fails_stops_the_decoding(serving, scripted, encoder, targets, step_of) -> None:
    step = step_of(4)
    with serving(scripted({"delays": {"data:4": 30}})) as running:
        with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
            await learned(Rig(running, encoder, targets), step, lambda pack: 1 // 0)
        await until(lambda: running.engine.load().running == 0)


async def test_a_server_that_fails_ends_the_step_with_its_error(serving, scripted, encoder, targets, step_of) -> None:
    step, started = step_of(4), time.monotonic()
    with (
        serving(scripted({"delays": {"data:4": 30}}, max_stream_s=0.3)) as running,
        pytest.raises(ServerUnavailable, match="for 1 samples"),
    ):
        await learned(Rig(running, encoder, targets), step, lambda pack: None)
    assert time.monotonic() - started < 5


def ground_truth_samples(step: StepPlan, encoder: Encoder, targets: TargetMaker) -> SamplesOf:
    sources = Sources(encoder, None)  # type: ignore[arg-type]  # no answers are asked for
    report = StepReport(step, no_account())
    return samples_of(step, GroundTruthSteps(targets, no_objective), sources, report.add_taught)


async def test_ground_truth_is_taught_in_record_order(encoder, targets, step_of) -> None:
    step = step_of(5)
    async with aclosing(ground_truth_samples(step, encoder, targets)(0)) as samples:
        made = [sample.target async for sample in samples]
    assert [target.record_id for target in made] == [f"data:{number}" for number in range(1, 6)]
    assert all(len(target.boxes) == 1 for target in made)


async def test_an_image_that_is_gone_is_named_with_its_record(encoder, targets, step_of) -> None:
    step = step_of(3)
    missing = step.groups[0][1].images[0]
    Path(missing).unlink()
    with pytest.raises(DataError, match=rf"data:2: {missing}"):
        async with aclosing(ground_truth_samples(step, encoder, targets)(0)) as samples:
            await anext(samples)


async def test_a_request_goes_out_while_the_next_record_is_read(
    serving, scripted, encoder, targets, step_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, read = step_of(3), threading.Event()
    real = Encoder.encode_now

    def slow(self: Encoder, record: Record) -> EncodedRecord:
        assert record.record_id != "data:3" or read.wait(10)
        return real(self, record)

    monkeypatch.setattr(Encoder, "encode_now", slow)
    with serving(scripted()) as running:
        async with Rig(running, encoder, targets).samples(step) as of_group, aclosing(of_group(0)) as samples:
            with anyio.fail_after(5):
                names = [(await anext(samples)).target.record_id for _ in range(2)]
            read.set()
            names += [sample.target.record_id async for sample in samples]
    assert sorted(names) == ["data:1", "data:2", "data:3"]


async def requested(encoded: list[EncodedRecord]) -> list[RolloutRequest]:
    async def each() -> AsyncGenerator[EncodedRecord, None]:
        for one in encoded:
            yield one

    return [request async for request in decode_requests(each(), 1, 5, lose=lambda lost: None)]


async def test_a_seed_depends_on_run_step_and_record_alone(requests_of) -> None:
    encoded = [request.encoded for request in requests_of(4)]
    forth, back = await requested(encoded), await requested(encoded[::-1])
    assert {r.uid: r.seed for r in forth} == {r.uid: r.seed for r in back}
    seeds = {sampling_seed(run, step, f"data:{n}") for run in (1, 2) for step in (5, 6) for n in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


async def test_requests_for_one_record_are_told_apart(requests_of) -> None:
    encoded = requests_of(1)[0].encoded
    assert isinstance(encoded.record, Record)
    assert [request.uid for request in await requested([encoded] * 3)] == ["data:1", "data:1+1", "data:1+2"]


async def test_the_next_pack_is_laid_out_on_a_thread_while_one_is_learned(encoder, targets, step_of) -> None:
    step, laid_out = step_of(4), []

    def lay_out(pack: Pack) -> list[str]:
        names = [item.target.record_id for item in pack.items]
        laid_out.append((names, threading.current_thread() is threading.main_thread()))
        return names

    samples = ground_truth_samples(step, encoder, targets)
    async with packed(step, samples, NoPacking(CAPACITY), lay_out) as packs:
        first = await anext(packs)
        await until(lambda: len(laid_out) == 2)
        rest = [names async for names in packs]
    assert [first, *rest] == [names for names, _ in laid_out]
    assert sorted(name for names in [first, *rest] for name in names) == [f"data:{n}" for n in range(1, 5)]
    assert not any(on_the_loop for _, on_the_loop in laid_out)
