"""What one optimizer step counted and how long its parts took."""

import time
from collections import Counter
from dataclasses import dataclass
from statistics import pstdev

from learner.channels.channel import Taught
from learner.detection.quality import quality_of
from learner.plan.schedule import Channel
from learner.plan.step_plan import StepPlan
from learner.plan.time_split import Lap, LearnerActivity, RunAccount, ServerActivity
from learner.reporting.tallies import Tallies
from learner.training.lane import ComputeLane
from learner.types import (
    DecodingStart,
    LearnedPack,
    LostRecord,
    LostSample,
    StepResult,
    TaughtRecord,
    TaughtRollout,
    TaughtSiblings,
)
from shared.errors import BoxloopError


class RecordsMiscounted(BoxloopError):
    """What a step learned and what it lost are not the records of its plan; this is a defect of the learner."""


@dataclass(frozen=True)
class StepRecord:
    """A finished step: its sums, ready to be logged alone or together with its neighbours.

    `trained` are the ids of the records that were in packs, in their order, `silent` those whose answers taught
    nothing; `learned` is what was made of answers.
    """

    step: int
    channel: Channel
    seconds: float
    tallies: Tallies
    trained: tuple[str, ...]
    learned: tuple[TaughtRollout, ...]
    lost: tuple[LostSample | LostRecord, ...]
    silent: tuple[str, ...] = ()


class StepReport:
    """Filled while a step runs, closed into a StepRecord. All on the event loop; no locks."""

    def __init__(self, plan: StepPlan, account: RunAccount) -> None:
        """Begin a step. What `account` has seen since the last one was closed lies between the two."""
        self._plan = plan
        self._account = account
        self._between = account.lap()
        if plan.channel.decodes:
            account.want_rollouts()
        self._opened_at = time.monotonic()
        self._tallies = Tallies()
        self._seconds: dict[str, float] = {}
        self._first_request_at = 0.0
        self._learned: list[TaughtRollout] = []
        self._taught: Counter[str] = Counter()
        self._samples: Counter[str] = Counter()
        self._silent: list[str] = []
        self._packs: list[LearnedPack] = []
        self._lost: list[LostSample | LostRecord] = []

    def add_time(self, name: str, seconds: float) -> None:
        """Add to one of the step's `time/…` metrics."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def add_taught(self, taught: Taught) -> None:
        """Book what a channel made, with what it measured on the way."""
        if isinstance(taught, TaughtRecord | TaughtRollout | TaughtSiblings):
            self._taught[taught.record_id] += 1
            self._samples.update(sample.target.record_id for sample in taught.samples)
        match taught:
            case TaughtRecord():
                self.add_time("time/encode_s", taught.encode_s)
            case TaughtRollout():
                self._learned.append(taught)
                self.add_time("time/rollout_parse_match_s", taught.make_s)
                count_answer(self._tallies, taught, self._plan.step)
                count_target(self._tallies, taught)
            case TaughtSiblings():
                self._add_siblings(taught)
            case LostSample() | LostRecord():
                self._lost.append(taught)
            case DecodingStart():
                self._first_request_at = taught.first_request_at
                self.add_time("time/encode_s", taught.encode_s)

    def _add_siblings(self, taught: TaughtSiblings) -> None:
        self._learned += taught.answers
        self._lost += taught.lost
        self.add_time("time/rollout_parse_match_s", taught.make_s)
        for answer in taught.answers:
            count_answer(self._tallies, answer, self._plan.step)
        count_rewards(self._tallies, taught)
        if not taught.samples:
            self._silent.append(taught.record_id)

    def add_pack(self, pack: LearnedPack) -> None:
        self._packs.append(pack)

    def check_complete(self) -> None:
        """Raise RecordsMiscounted unless every record was taught or lost, and what was made of it was in a pack.

        Each as often as it stands in the plan. To be called between the last pack and the update, so that a step that
        is not whole moves nothing.
        """
        planned = Counter(record.record_id for record in self._plan.records)
        one_answer = self._plan.answers_per_record <= 1
        lost = (each for each in self._lost if one_answer or isinstance(each, LostRecord))
        found = self._taught + Counter(each.record.record_id for each in lost)
        packed = Counter(self._packed)
        if found != planned or packed != self._samples:
            missing = (planned - found) + (self._samples - packed)
            too_many = (found - planned) + (packed - self._samples)
            raise RecordsMiscounted(
                f"step {self._plan.step}: neither learned nor lost: {sorted(missing.elements())}; learned or lost too "
                f"often: {sorted(too_many.elements())}; the weights are as before this step"
            )

    @property
    def _packed(self) -> tuple[str, ...]:
        return tuple(record_id for pack in self._packs for record_id in pack.record_ids)

    @property
    def _trained(self) -> tuple[str, ...]:
        """Records, each once where several answers to it were learned."""
        return self._packed if self._plan.answers_per_record <= 1 else tuple(dict.fromkeys(self._packed))

    def closed(self, update: StepResult, lane: ComputeLane) -> StepRecord:
        """Close the step after its update; `lane` tells when the learner computed."""
        if self._plan.channel.decodes:
            self._account.want_no_rollouts()
        step_s, lap = time.monotonic() - self._opened_at, self._account.lap()
        tallies = self._tallies
        for channel in Channel:
            tallies.count(f"stage2/channel_{channel.value.lower()}", self._plan.channel is channel, 1)
        self._count_packs(tallies, step_s)
        count_update(tallies, update)
        tallies.note("epoch", self._plan.epoch)
        self._count_times(tallies, update, lane)
        count_laps(tallies, step_s, self._between, lap)
        if self._plan.channel.decodes:
            tallies.count("time/rollout_wait_s", lap.learner[LearnerActivity.WAITING_ROLLOUTS], 1)
        return StepRecord(
            step=self._plan.step,
            channel=self._plan.channel,
            seconds=step_s,
            tallies=tallies,
            trained=self._trained,
            learned=tuple(self._learned),
            lost=tuple(self._lost),
            silent=tuple(self._silent),
        )

    def _count_packs(self, tallies: Tallies, step_s: float) -> None:
        num_packs = len(self._packs)
        tokens = sum(pack.num_tokens for pack in self._packs)
        tallies.count("packing/post_rollout_fill", tokens, sum(pack.capacity for pack in self._packs))
        tallies.count("packing/post_rollout_segments", sum(pack.num_targets for pack in self._packs), num_packs)
        tallies.count("packing/num_packs", num_packs, 1)
        tallies.count("packing/tokens_per_s", tokens, step_s)

    def _count_times(self, tallies: Tallies, update: StepResult, lane: ComputeLane) -> None:
        """Count what each part took."""
        for name, seconds in {
            "time/post_rollout_pack_s": sum(pack.collate_s for pack in self._packs),
            "time/forward_s": sum(pack.forward_s for pack in self._packs),
            "time/backward_s": sum(pack.backward_s for pack in self._packs),
            "time/optimizer_s": update.optimizer_s,
            "time/encode_s": 0.0,
            "time/sync_s": 0.0,
        }.items():
            self.add_time(name, seconds)
        arrivals = [learned.rollout.arrived_at for learned in self._learned]
        generate_s = max(arrivals) - self._first_request_at if arrivals else 0.0
        self.add_time("time/rollout_generate_s", generate_s)
        if self._plan.channel.decodes:
            self.add_time("time/overlap_s", lane.busy_s(min(arrivals), max(arrivals)) if arrivals else 0.0)
            new_tokens = tallies.numerator("rollout/gen_new_tokens_mean")
            tallies.count("rollout/gen_tokens_per_s", new_tokens, generate_s)
        for name, seconds in self._seconds.items():
            tallies.count(name, seconds, 1)


def count_laps(tallies: Tallies, step_s: float, between: Lap, lap: Lap) -> None:
    """Count every second of both sides since the last step was closed, each in one activity."""
    tallies.count("time/step_s", step_s, 1)
    tallies.count("time/between_steps_s", between.seconds, 1)
    learner = {each.value: between.learner[each] + lap.learner[each] for each in LearnerActivity}
    servers = {each.value: between.servers[each] + lap.servers[each] for each in ServerActivity}
    for side, seconds in (("learner", learner), ("server", servers)):
        for activity, spent in seconds.items():
            tallies.count(f"share/{side}_{activity}", spent, sum(seconds.values()))


def count_update(tallies: Tallies, update: StepResult) -> None:
    """Count the optimizer step under the names of section "Loss and optimizer" of docs/metrics.md."""
    tallies.count("loss", update.loss, 1)
    for metric, (value, count) in update.terms.items():
        tallies.count(metric, value, count)
    tallies.note("grad_norm", update.grad_norm)
    tallies.note("learning_rate", update.learning_rate)


def count_target(tallies: Tallies, learned: TaughtRollout) -> None:
    """Count how much of an answer stayed in what is taught of it."""
    num_found = learned.sample.target.num_found
    tallies.count("rollout/matched_for_supervision", num_found)
    tallies.count("rollout/fn_appended", len(learned.rollout.request.encoded.record.objects) - num_found)


def count_rewards(tallies: Tallies, taught: TaughtSiblings) -> None:
    """Count the answers to one record under the names of section "Rewards" of docs/metrics.md."""
    if not taught.advantages:
        return
    rewards = [graded.reward(taught.price) for graded in taught.graded]
    value, named = sum(each.value for each in taught.graded), sum(each.num_named for each in taught.graded)
    annotated = sum(len(answer.rollout.request.encoded.record.objects) for answer in taught.answers)
    tallies.count("reward/mean", sum(rewards), len(rewards))
    tallies.count("reward/std_in_record", pstdev(rewards), 1)
    tallies.count("reward/price", taught.price, 1)
    tallies.count("reward/precision", value, named)
    tallies.count("reward/soft_f1", 2 * value, named + annotated)
    tallies.count("reward/annotated", annotated)
    tallies.count("reward/silent_records", taught.is_silent, 1)
    tallies.count("reward/skipped_records", taught.is_skipped, 1)
    squares = sum(each**2 for of_answer in taught.advantages for each in of_answer)
    tallies.count("reward/advantage_variance", squares, sum(map(len, taught.advantages)))
    tallies.note("reward/advantage_std", taught.scale)


def count_answer(tallies: Tallies, learned: TaughtRollout, step: int) -> None:
    """Count one decoded answer under the names of section "Rollouts" of docs/metrics.md."""
    rollout, parsed, match = learned.rollout, learned.parsed, learned.match
    quality = quality_of(parsed, rollout.request.encoded.record.objects, match)
    predicted, truth, matched = quality.num_predictions, quality.num_ground_truth, quality.num_matched
    tallies.count("stage2/raw_rollouts", 1)
    tallies.count("stage2/invalid_rollout", quality.num_invalid)
    tallies.count("stage2/empty_rollout", quality.num_empty)
    if rollout.policy_version is not None:
        tallies.count("stage2/policy_lag", step - rollout.policy_version.step, 1)
    tallies.count("rollout/parse_truncated_rate", quality.num_truncated, 1)
    tallies.count("rollout/parse_dropped_invalid", quality.num_dropped)
    for reason, times in parsed.dropped.items():
        tallies.count(f"rollout/parse_dropped_{reason}", times)
    tallies.count("rollout/parse_obj_valid_frac", predicted, predicted + quality.num_dropped)
    tallies.count("rollout/sample_valid_pred_rate", quality.num_with_predictions, 1)
    tallies.count("rollout/sample_sound_rate", quality.num_sound, 1)
    tallies.count("rollout/sample_any_match_rate", quality.num_with_matches, 1)
    tallies.count("rollout/precision", matched, predicted)
    tallies.count("rollout/recall", matched, truth)
    tallies.count("rollout/f1", 2 * matched, predicted + truth)
    tallies.count("rollout/matched_maskiou_mean", quality.matched_iou_sum, matched)
    tallies.count("rollout/valid_pred_objects", predicted, 1)
    tallies.count("rollout/gt_objects", truth, 1)
    tallies.count("rollout/desc_accuracy_on_matched", quality.num_named, matched)
    tallies.count("rollout/fp", len(match.extra))
    tallies.count("rollout/gating_rejections", quality.num_gating_rejections)
    tallies.count("rollout/duplicate_rate", quality.num_duplicates, predicted)
    tallies.count("rollout/pred_per_gt", predicted, truth)
    num_tokens = len(rollout.token_ids)
    tallies.count("rollout/gen_new_tokens_mean", num_tokens, 1)
    tallies.note("rollout/gen_new_tokens_p90", num_tokens)
    tallies.note("rollout/gen_new_tokens_p99", num_tokens)
