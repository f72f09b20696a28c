"""Channel R: several answers to each record, each object paid for what it adds and charged its price."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from math import fsum

from learner.channels.channel import Objective, Sources, StepKind, StepParts, Taught
from learner.channels.last_pass import LastPass
from learner.channels.reward_averages import RewardAverages, RewardSums
from learner.channels.target_maker import TargetMaker
from learner.detection.rewards import GradedAnswer, RewardRules, advantages_of, grade_answer
from learner.detection.targets import sampled_target
from learner.losses.terms import PackLoss
from learner.model.batch import PackedBatch
from learner.model.forward import embed, encode_images
from learner.model.loaded import LoadedModel
from learner.plan.step_plan import StepPlan, StepTotals
from learner.types import (
    EncodedRecord,
    LostRecord,
    LostSample,
    Outcome,
    Rollout,
    TaughtRollout,
    TaughtSiblings,
    TrainingSample,
)
from shared.config.section import pick
from shared.errors import ProtocolError

ENDED_BY_A_LOOP = ("repetition", "object_limit")
FEWEST = 2
"""Answers that can be held against each other."""


@dataclass(frozen=True)
class PolicyGradient:
    """One pass over answers as they were sampled, at the temperature that they were sampled at."""

    last_pass: LastPass
    temperature: float
    anchor_ce_weight: float

    def __call__(self, loaded: LoadedModel, batch: PackedBatch, totals: StepTotals) -> PackLoss:
        images = encode_images(loaded, batch)
        if self.anchor_ce_weight:
            totals = totals.weighted(self.anchor_ce_weight)
        embeds = embed(loaded, batch, images)
        return self.last_pass(loaded, batch, totals, embeds, images, temperature=self.temperature)


@dataclass
class Gathered:
    """What has come of one record: its answers, and those that were lost."""

    encoded: EncodedRecord
    answers: list[TaughtRollout] = field(default_factory=list)
    graded: list[GradedAnswer] = field(default_factory=list)
    lost: list[LostSample] = field(default_factory=list)
    make_s: float = 0.0

    @property
    def num_come(self) -> int:
        return len(self.answers) + len(self.lost)

    @property
    def can_be_held_against_each_other(self) -> bool:
        return len(self.answers) >= FEWEST

    def in_order(self) -> "Gathered":
        """The same with answers in the order of their numbers, whenever they came."""
        order = sorted(range(len(self.answers)), key=lambda place: self.answers[place].rollout.request.sample or 0)
        self.answers, self.graded = [self.answers[at] for at in order], [self.graded[at] for at in order]
        return self


@dataclass(frozen=True)
class RewardSteps:
    """Each record is learned as soon as the last of its answers is in.

    The first group of a run is gathered whole, because price and scale are to come from it. A group that loses every
    record is an error.
    """

    targets: TargetMaker
    rules: RewardRules
    averages: RewardAverages
    objective: Objective
    has_anchor: bool

    async def teach(self, step: StepPlan, group: int, sources: Sources) -> AsyncGenerator[Taught, None]:
        waiting: dict[str, Gathered] = {}
        held: list[Gathered] = []
        last_loss, num_learned = "", 0
        async with aclosing(sources.answers.answers(step, group)) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, LostRecord):
                    last_loss = outcome.message
                    yield outcome
                    continue
                if isinstance(outcome, LostSample):
                    last_loss = f"{outcome.request.uid}: {outcome.message}"
                gathered = self._take(outcome, waiting, step.answers_per_record)
                if gathered is None:
                    continue
                num_learned += gathered.can_be_held_against_each_other
                if self.averages.known:
                    yield self.pay(gathered)
                else:
                    held.append(gathered)
        if not num_learned:
            raise ProtocolError(
                f"no record has {FEWEST} answers to hold against each other; the last loss: {last_loss}"
            )
        if held:
            self.averages.begin_with(self._sums_of(held))
        for gathered in held:
            yield self.pay(gathered)
        if group == len(step.groups) - 1:
            yield sources.answers.start_of(step)

    def pay(self, gathered: Gathered) -> TaughtSiblings:
        """Hold the answers to one record against each other, and make of them what is learned."""
        started = time.perf_counter()
        price, scale = self.averages.price, self.averages.scale
        encoded, answers = gathered.encoded, gathered.answers
        advantages: list[list[float]] = []
        samples: list[TrainingSample] = []
        if gathered.can_be_held_against_each_other:
            advantages = advantages_of(gathered.graded, price, self.rules)
            if any(map(any, advantages)) and not self.averages.is_noise:
                samples += [
                    self._sample(encoded, taught.rollout, [each / scale for each in of_answer])
                    for taught, of_answer in zip(answers, advantages, strict=True)
                ]
            if self.has_anchor:
                samples.append(self.targets.of_record(encoded))
        return TaughtSiblings(
            record_id=encoded.record.record_id,
            answers=tuple(answers),
            graded=tuple(gathered.graded),
            lost=tuple(gathered.lost),
            price=price,
            scale=scale,
            advantages=advantages,
            samples=tuple(samples),
            make_s=gathered.make_s + time.perf_counter() - started,
        )

    def _take(self, outcome: Outcome, waiting: dict[str, Gathered], answers_per_record: int) -> Gathered | None:
        """Add an answer to its siblings; returns them once they are complete."""
        assert not isinstance(outcome, LostRecord)
        started, request = time.perf_counter(), outcome.request
        gathered = waiting.setdefault(request.place, Gathered(request.encoded))
        if isinstance(outcome, Rollout):
            taught = self.targets.of_rollout(outcome)
            looped = outcome.finish_reason in ENDED_BY_A_LOOP
            truth = request.encoded.record.objects
            gathered.answers.append(taught)
            gathered.graded.append(grade_answer(taught.parsed, len(outcome.token_ids), looped, truth, self.rules))
        else:
            gathered.lost.append(outcome)
        gathered.make_s += time.perf_counter() - started
        if gathered.num_come < answers_per_record:
            return None
        return waiting.pop(request.place).in_order()

    def _sample(self, encoded: EncodedRecord, rollout: Rollout, advantages: list[float]) -> TrainingSample:
        target = sampled_target(
            encoded.record.record_id,
            encoded.prompt_token_ids,
            rollout.token_ids,
            advantages,
            rollout.token_logprobs or (),
        )
        return TrainingSample(target, encoded.image)

    def _sums_of(self, held: list[Gathered]) -> RewardSums:
        """The sums of a first group, whatever order it came in."""
        usable = [each for each in held if each.can_be_held_against_each_other]
        graded = [graded for each in usable for graded in each.graded]
        earned = RewardSums(
            value=fsum(each.value for each in graded),
            named=sum(each.num_named for each in graded),
            annotated=sum(len(each.encoded.record.objects) * len(each.graded) for each in usable),
        )
        price = self.averages.price_of(earned)
        advantages = [
            advantage
            for each in usable
            for of_answer in advantages_of(each.graded, price, self.rules)
            for advantage in of_answer
        ]
        return earned + RewardSums(squares=fsum(each**2 for each in advantages), tokens=len(advantages))


def open_steps(parts: StepParts) -> StepKind:
    """Channel R: answers are paid, and their tokens become likelier or less by what they earned."""
    section = parts.config.stage2.reward
    rules = pick(RewardRules, section, in_order=parts.config.custom.object_ordering == "sorted")
    objective = PolicyGradient(parts.last_pass, section.temperature, section.anchor_ce_weight)
    return RewardSteps(parts.targets, rules, parts.averages, objective, has_anchor=section.anchor_ce_weight > 0)
