"""Channel R: siblings are gathered, paid by what came before the step, and learned whatever the order they come in."""

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from learner.channels.channel import Sources, Taught
from learner.channels.last_pass import LastPass
from learner.channels.reward import PolicyGradient, RewardSteps
from learner.channels.reward_averages import RewardAverages, RewardSums
from learner.channels.target_maker import TargetMaker
from learner.detection.matching import MatchingConfig
from learner.detection.record import GroundTruthObject, Record
from learner.detection.rewards import RewardRules
from learner.detection.serialize import answer_text
from learner.detection.targets import TargetWeights, sampled_target
from learner.plan.schedule import Channel
from learner.plan.step_plan import StepPlan, StepTotals
from learner.reporting.tallies import Tallies
from learner.types import (
    DecodingStart,
    EncodedRecord,
    LostRecord,
    LostSample,
    Outcome,
    Rollout,
    RolloutRequest,
    TaughtSiblings,
    TrainingSample,
)
from shared.config.stage2 import RewardSection, Stage2Section
from shared.errors import ProtocolError

CAT = GroundTruthObject("red circle", "bbox_2d", (100, 100, 300, 300))
DOG = GroundTruthObject("blue square", "bbox_2d", (500, 400, 800, 700))
OFF = GroundTruthObject("blue square", "bbox_2d", (520, 430, 800, 700))
SAID = ([CAT, DOG], [CAT], [CAT, OFF], [])
"""Four answers to one record."""


class Answers:
    """An answer source that has these outcomes."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes = outcomes

    async def answers(self, step: StepPlan, group: int) -> AsyncGenerator[Outcome, None]:
        for outcome in self._outcomes:
            yield outcome

    def start_of(self, step: StepPlan) -> DecodingStart:
        return DecodingStart(1.0, 0.1)


@pytest.fixture
def encoded(workbench: Any) -> Callable[[str], EncodedRecord]:
    def encode(record_id: str) -> EncodedRecord:
        sample = workbench.sample(0, 0)
        prompt = sample.target.token_ids[: sample.target.num_prompt_tokens]
        record = Record(record_id, ("image.png",), 64, 64, (CAT, DOG))
        return EncodedRecord(record, (1, 2), prompt, sample.image)

    return encode


@pytest.fixture
def rollout(workbench: Any, encoded: Callable[[str], EncodedRecord]) -> Callable[..., Rollout]:
    def make(record_id: str, sample: int, objects: Sequence[GroundTruthObject], **fields: Any) -> Rollout:
        ids = (*workbench.vocabulary.encode(answer_text(objects)), workbench.vocabulary.im_end_id)
        request = RolloutRequest(encoded(record_id), seed=1, sample=sample)
        whole = Rollout(request, ids, "stop", None, None, 0.0, 0.5, 0.0)
        return replace(whole, **fields)

    return make


def steps(bench: Any, section: RewardSection = RewardSection(), known: RewardSums | None = None) -> RewardSteps:
    targets = TargetMaker(bench.vocabulary, MatchingConfig(), TargetWeights(), 4096)
    averages = RewardAverages(section)
    if known:
        averages.begin_with(known)
    last_pass = LastPass(Stage2Section(reward=section), bench.coordinate_ids)
    objective = PolicyGradient(last_pass, section.temperature, section.anchor_ce_weight)
    return RewardSteps(targets, RewardRules(), averages, objective, has_anchor=section.anchor_ce_weight > 0)


async def taught_by(kind: RewardSteps, outcomes: Sequence[Outcome], num_answers: int = 4) -> list[Taught]:
    step = StepPlan(3, Channel.R, 0.5, ((),), StepTotals(2, 4), 8, answers_per_record=num_answers)
    sources = Sources(encoder=None, answers=Answers(outcomes))  # type: ignore[arg-type]
    return [each async for each in kind.teach(step, 0, sources)]


KNOWN = RewardSums(value=40, named=60, annotated=100, squares=90, tokens=1000)
"""A price of .25 and a scale of .3."""


async def test_a_record_is_paid_as_soon_as_its_last_answer_is_in(workbench: Any, rollout: Any) -> None:
    kind = steps(workbench, known=KNOWN)
    assert (kind.averages.price, kind.averages.scale) == pytest.approx((0.25, 0.3))
    outcomes = [rollout(name, place, said) for place, said in enumerate(SAID) for name in ("x:1", "x:2")]
    one, two, start = await taught_by(kind, outcomes)
    assert isinstance(one, TaughtSiblings)
    assert isinstance(two, TaughtSiblings)
    assert isinstance(start, DecodingStart)
    assert (one.record_id, two.record_id) == ("x:1", "x:2")
    assert [graded.reward(one.price) for graded in one.graded] == pytest.approx(
        [1.5, 0.75, 0.5 + one.graded[2].value - 1, 0.0]
    )
    assert len(one.samples) == 4
    best, least = one.samples[0].target, one.samples[3].target
    assert min(best.advantages) >= 0 > max(least.advantages)  # naming both was right, to stop at once was not
    assert best.token_ids[best.num_prompt_tokens :] == one.answers[0].rollout.token_ids
    assert (best.ce_positions, best.boxes) == ((), ())


async def test_the_order_of_arrival_changes_nothing(workbench: Any, rollout: Any) -> None:
    outcomes = [rollout(name, place, said) for name in ("x:1", "x:2") for place, said in enumerate(SAID)]
    for known in (None, KNOWN):
        forwards = await taught_by(steps(workbench, known=known), outcomes)
        backwards = await taught_by(steps(workbench, known=known), outcomes[::-1])
        targets = [
            {
                each.record_id: [sample.target for sample in each.samples]
                for each in taught
                if isinstance(each, TaughtSiblings)
            }
            for taught in (forwards, backwards)
        ]
        assert targets[0] == targets[1]


async def test_a_first_step_is_gathered_whole_and_paid_by_its_own_sums(workbench: Any, rollout: Any) -> None:
    kind = steps(workbench)
    one, *_ = await taught_by(kind, [rollout("x:1", place, said) for place, said in enumerate(SAID)])
    assert isinstance(one, TaughtSiblings)
    value = sum(graded.value for graded in one.graded)
    assert one.price == pytest.approx(value / (5 + 8))  # half of 2S/(P + G)
    learned = [advantage for sample in one.samples for advantage in sample.target.advantages]
    assert math.sqrt(sum(each**2 for each in learned) / len(learned)) == pytest.approx(1.0)


async def test_a_lost_sibling_leaves_the_rest_and_one_alone_teaches_nothing(workbench: Any, rollout: Any) -> None:
    def lost(answer: Rollout) -> LostSample:
        return LostSample(answer.request, "engine_error", "gone", retryable=False)

    some, few = [[rollout(name, place, said) for place, said in enumerate(SAID)] for name in ("x:1", "x:2")]
    outcomes = [*some[:3], lost(some[3]), few[0], *map(lost, few[1:])]
    one, two, _ = await taught_by(steps(workbench, known=KNOWN), outcomes)
    assert isinstance(one, TaughtSiblings)
    assert isinstance(two, TaughtSiblings)
    assert (len(one.samples), len(one.lost)) == (3, 1)
    assert (two.samples, len(two.answers), len(two.lost)) == ((), 1, 3)
    with pytest.raises(ProtocolError, match="x:2#3: gone"):
        await taught_by(steps(workbench, known=KNOWN), outcomes[4:])


async def test_a_record_that_cannot_be_read_is_lost_and_the_others_go_on(
    workbench: Any, rollout: Any, encoded: Any
) -> None:
    broken = LostRecord(encoded("x:9").record, "cannot be read")
    taught = await taught_by(
        steps(workbench, known=KNOWN), [rollout("x:1", 0, [CAT]), broken, rollout("x:1", 1, [])], 2
    )
    assert [type(each) for each in taught] == [LostRecord, TaughtSiblings, DecodingStart]


async def test_equal_answers_are_silent_and_noise_is_left_out(workbench: Any, rollout: Any) -> None:
    alike = [rollout("x:1", place, [CAT]) for place in range(2)]
    one, _ = await taught_by(steps(workbench, known=KNOWN), alike, 2)
    assert isinstance(one, TaughtSiblings)
    assert (one.is_silent, one.samples) == (True, ())
    solved = replace(KNOWN, squares=0.1)  # a scale of .01
    two, _ = await taught_by(steps(workbench, known=solved), [alike[0], rollout("x:1", 1, [])], 2)
    assert isinstance(two, TaughtSiblings)
    assert (two.is_silent, two.samples) == (False, ())
    assert [each.is_skipped for each in (one, two)] == [False, True]


async def test_an_anchor_is_the_record_s_own_answer(workbench: Any, rollout: Any) -> None:
    section = RewardSection(anchor_ce_weight=0.1)
    one, _ = await taught_by(steps(workbench, section, KNOWN), [rollout("x:1", 0, [CAT]), rollout("x:1", 1, [])], 2)
    assert isinstance(one, TaughtSiblings)
    anchor = one.samples[-1].target
    assert anchor.ce_positions
    assert [bins for _, bins in anchor.boxes] == [CAT.bins, DOG.bins]
    assert not one.is_skipped


async def test_a_record_of_which_the_anchor_alone_is_learned_counts_as_skipped(workbench: Any, rollout: Any) -> None:
    section, solved = RewardSection(anchor_ce_weight=0.1), replace(KNOWN, squares=0.1)
    one, _ = await taught_by(steps(workbench, section, solved), [rollout("x:1", 0, [CAT]), rollout("x:1", 1, [])], 2)
    assert isinstance(one, TaughtSiblings)
    assert (len(one.samples), one.is_skipped) == (1, True)


# --- the loss ---------------------------------------------------------------------------------------------------------


def sampled(bench: Any, seed: int, served: bool = False) -> TrainingSample:
    made = bench.sample(seed, 2)
    start = made.target.num_prompt_tokens
    answer = made.target.token_ids[start:]
    chance = torch.Generator().manual_seed(seed)
    advantages = torch.randn(len(answer), generator=chance).tolist()
    logprobs = (-8 * torch.rand(len(answer), generator=chance)).tolist() if served else ()
    target = sampled_target(made.target.record_id, made.target.token_ids[:start], answer, advantages, logprobs)
    return replace(made, target=target)


def plain_loss(
    bench: Any, samples: Sequence[TrainingSample], temperature: float, num_answers: int, weight: float
) -> torch.Tensor:
    """Token by token, on the logits that transformers' own forward gives."""
    from tests.learner.channels.test_reference import plain_logits

    total = torch.zeros(())
    for sample in samples:
        target = sample.target
        scores, _ = plain_logits(bench, sample)
        served = target.served_logprobs or [None] * len(target.advantages)
        for place, advantage, logprob in zip(target.sampled_positions, target.advantages, served, strict=True):
            ce = functional.cross_entropy(scores[place - 1] / temperature, torch.tensor(target.token_ids[place]))
            ratio = 1.0
            if logprob is not None:
                difference = float(-ce.detach()) - logprob
                ratio = 0.0 if abs(difference) > 3 else min(2.0, math.exp(difference))
            total = total + ratio * advantage * ce / (num_answers * weight)
    return total


@pytest.mark.parametrize(("served", "temperature"), [(False, 1.0), (True, 1.0), (False, 0.5)])
def test_loss_and_gradient_are_those_of_a_plain_loop_whatever_the_packs(
    workbench_of: Any, pack_of: Any, served: bool, temperature: float
) -> None:
    from learner.packing.collate import collate

    gradients = []
    for cuts in (None, [0, 3], [0, 1, 3]):
        bench = workbench_of("eager")
        samples = [sampled(bench, seed, served) for seed in range(3)]
        totals = StepTotals(2, 4, answer_weight=50.0, num_answers=4)
        section = RewardSection(temperature=temperature)
        if cuts is None:
            loss = plain_loss(bench, samples, temperature, 4, 50.0)
            loss.backward()
        else:
            objective = steps(bench, section).objective
            loss = torch.zeros(())
            for start, end in pairwise(cuts):
                batch = collate(pack_of(*samples[start:end]), bench.loaded, pad_token_id=0)
                part = objective(bench.loaded, batch, totals)
                part.total.backward()
                loss = loss + part.total.detach()
                assert part.counts["answer"] == (end - start) * 50.0
                assert part.counts["sample"] == 0
        gradients.append(
            (float(loss.detach()), {n: p.grad for n, p in bench.loaded.model.named_parameters() if p.grad is not None})
        )
    expected, slopes = gradients[0]
    for found, mine in gradients[1:]:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for name, slope in slopes.items():
            assert float((mine[name] - slope).norm()) <= 1e-4 * float(slope.norm()) + 1e-7, name


def test_an_anchor_counts_as_channel_a_does(workbench: Any, pack_of: Any, step_totals_of: Any) -> None:
    from learner.channels.last_pass import SinglePass
    from learner.packing.collate import collate

    sample = workbench.sample(1, 2)
    totals = step_totals_of(sample)
    batch = collate(pack_of(sample), workbench.loaded, pad_token_id=0)
    kind = steps(workbench, RewardSection(anchor_ce_weight=0.25))
    alone = SinglePass(LastPass(Stage2Section(), workbench.coordinate_ids))(workbench.loaded, batch, totals)
    anchored = kind.objective(workbench.loaded, batch, replace(totals, num_answers=4))
    assert anchored.total.item() == pytest.approx(0.25 * alone.total.item(), rel=1e-6)


# --- averages ---------------------------------------------------------------------------------------------------------


def step_of(value: float, named: float, annotated: float, squares: float = 9.0) -> Tallies:
    tallies = Tallies()
    tallies.count("reward/precision", value, named)
    tallies.count("reward/annotated", annotated)
    tallies.count("reward/advantage_variance", squares, 100)
    return tallies


def test_price_and_scale_are_ratios_of_moving_averages_of_steps_before() -> None:
    averages = RewardAverages(RewardSection(price_decay=0.5))
    assert not averages.known
    averages.begin_with(RewardSums(1, 2, 3, 4, 5))  # of a part of the first step
    assert averages.follow(step_of(10, 20, 30)) is None
    assert averages.price == pytest.approx(10 / 50)
    averages.follow(step_of(30, 20, 30, squares=36.0))
    assert averages.price == pytest.approx(20 / 50)
    assert averages.scale == pytest.approx(math.sqrt(22.5 / 100))
    averages.follow(Tallies())  # a step that samples nothing
    assert averages.price == pytest.approx(20 / 50)


def test_annotations_that_leave_objects_out_lower_the_price() -> None:
    averages = RewardAverages(RewardSection(annotation_recall=0.5))
    averages.follow(step_of(10, 20, 30))
    assert averages.price == pytest.approx(0.5 * 10 / (0.5 * 20 + 30))
    fixed = RewardAverages(RewardSection(price=0.07))
    fixed.follow(step_of(10, 20, 30))
    assert fixed.price == 0.07


def test_a_model_that_is_not_there_yet_is_told_so_once() -> None:
    averages = RewardAverages(RewardSection())
    assert "soft F1 of 0.08" in (averages.follow(step_of(2, 20, 30)) or "")
    assert averages.follow(step_of(2, 20, 30)) is None
    resumed = RewardAverages(RewardSection())
    resumed.go_on_from(averages.kept)
    assert resumed.follow(step_of(2, 20, 30)) is None
    assert RewardAverages(RewardSection()).follow(step_of(10, 20, 30)) is None
    stricter = RewardAverages(RewardSection(box_worth="iou50_95"))  # its F1 is lower by nature
    assert stricter.follow(step_of(2, 20, 30)) is None
