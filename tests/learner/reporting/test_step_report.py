"""What a step counted, under the names and on the channels that the catalogue promises."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from learner.detection.record import GroundTruthObject
from learner.detection.rewards import RewardRules, grade_answer
from learner.detection.serialize import answer_text
from learner.plan.schedule import Channel
from learner.plan.step_plan import StepPlan
from learner.plan.time_split import LearnerActivity, RunAccount, ServerActivity
from learner.reporting.step_report import RecordsMiscounted, StepRecord, StepReport
from learner.reporting.tallies import Tallies
from learner.training.lane import ComputeLane
from learner.types import DecodingStart, LearnedPack, LostSample, StepResult, TaughtRollout, TaughtSiblings
from shared.accounting import TimeAccount
from shared.metrics import metric_named

PlanOf = Callable[[int, Channel], StepPlan]
LearnedOf = Callable[..., TaughtRollout]

CAT = GroundTruthObject("cat", "bbox_2d", (100, 100, 300, 300))
DOG = GroundTruthObject("dog", "bbox_2d", (500, 500, 900, 900))
FAR = GroundTruthObject("ghost", "bbox_2d", (10, 800, 60, 900))


def update(**changes: Any) -> StepResult:
    terms = {
        "loss/ce": (3.0, 2),
        "loss/bbox_l1": (0.6, 3),
        "loss/bbox_giou": (1.2, 3),
        "loss/coord": (2.4, 12),
        "loss/coord_mass": (9.0, 12),
    }
    rest = {"loss": 1.5, "terms": terms, "grad_norm": 0.7, "learning_rate": 1e-3, "optimizer_s": 0.0}
    return StepResult(**{**rest, **changes})


def pack(**changes: Any) -> LearnedPack:
    numbers = {
        "record_ids": ("train:1", "train:2"),
        "num_tokens": 60,
        "capacity": 100,
        "collate_s": 0.0,
        "forward_s": 0.0,
    }
    return LearnedPack(**{**numbers, "backward_s": 0.0, **changes})


def account_of(num_servers: int = 1) -> RunAccount:
    return RunAccount(TimeAccount(LearnerActivity), [TimeAccount(ServerActivity) for _ in range(num_servers)])


def opened(plan: StepPlan) -> StepReport:
    return StepReport(plan, account_of())


def closed(report: StepReport, **changes: Any) -> StepRecord:
    with ComputeLane() as lane:
        return report.closed(update(**changes), lane)


def test_an_a_step_has_no_quality_and_decodes_for_no_time(plan_of: PlanOf) -> None:
    report = opened(plan_of(6, Channel.A))
    report.add_pack(pack())
    metrics = closed(report).tallies.reduced()
    assert (metrics["stage2/channel_a"], metrics["stage2/channel_b"]) == (1, 0)
    assert metrics["time/rollout_generate_s"] == 0
    assert not [name for name in metrics if name.startswith("rollout/")]
    assert {metric_named(name).steps for name in metrics} == {"all"}


def test_losses_are_divided_by_what_they_were_summed_over(plan_of: PlanOf) -> None:
    metrics = closed(opened(plan_of(0, Channel.A))).tallies.reduced()
    expected = {"loss": 1.5, "loss/ce": 1.5, "loss/bbox_l1": 0.2, "loss/bbox_giou": 0.4, "loss/coord": 0.2}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert (metrics["loss/coord_mass"], metrics["grad_norm"], metrics["epoch"]) == pytest.approx((0.75, 0.7, 0.25))


def test_packs_are_counted_by_tokens_and_targets(plan_of: PlanOf) -> None:
    report = opened(plan_of(0, Channel.A))
    report.add_pack(pack(record_ids=("a", "b", "c"), num_tokens=90))
    report.add_pack(pack(record_ids=("d",), num_tokens=30))
    metrics = closed(report).tallies.reduced()
    assert metrics["packing/post_rollout_fill"] == pytest.approx(0.6)
    assert metrics["packing/tokens_per_s"] == pytest.approx(120 / metrics["time/step_s"])
    assert (metrics["packing/post_rollout_segments"], metrics["packing/num_packs"]) == (2, 2)


def test_answers_are_counted_over_objects_or_samples_as_named(plan_of: PlanOf, learned_of: LearnedOf) -> None:
    report = opened(plan_of(5, Channel.B))
    report.add_taught(learned_of(answer_text([CAT, FAR]) + "<|im_end|>", (CAT, DOG), policy_step=3).timed(0.0))
    report.add_taught(learned_of("no braces", (DOG,), policy_step=5).timed(0.0))
    report.add_taught(learned_of("{}<|im_end|>", policy_step=5).timed(0.0))
    report.add_taught(learned_of('{"object_1": {"desc": "ca', (CAT,), "length", policy_step=5).timed(0.0))
    metrics = closed(report).tallies.reduced()
    expected = {
        "stage2/raw_rollouts": 4,
        "stage2/invalid_rollout": 2,
        "stage2/empty_rollout": 1,
        "stage2/policy_lag": 0.5,
        "rollout/parse_truncated_rate": 0.25,
        "rollout/parse_dropped_invalid": 1,
        "rollout/parse_dropped_incomplete": 1,
        "rollout/parse_obj_valid_frac": 2 / 3,
        "rollout/sample_valid_pred_rate": 0.25,
        "rollout/sample_any_match_rate": 0.25,
        "rollout/precision": 0.5,
        "rollout/recall": 0.25,
        "rollout/f1": 2 / 6,
        "rollout/matched_maskiou_mean": 1.0,
        "rollout/desc_accuracy_on_matched": 1.0,
        "rollout/valid_pred_objects": 0.5,
        "rollout/gt_objects": 1.0,
        "rollout/matched_for_supervision": 1,
        "rollout/fn_appended": 3,
        "rollout/fp": 1,
        "rollout/pred_per_gt": 0.5,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_decoding_is_timed_from_the_first_request_to_the_last_answer(plan_of: PlanOf, learned_of: LearnedOf) -> None:
    report = opened(plan_of(2, Channel.B))
    report.add_taught(DecodingStart(time.monotonic(), 0.0))
    started = time.monotonic()
    answers = [learned_of("{}<|im_end|>", arrived_at=started + seconds) for seconds in (0.5, 2.0, 1.0)]
    for answer in answers:
        report.add_taught(answer.timed(0.25))
    metrics = closed(report).tallies.reduced()
    assert metrics["time/rollout_generate_s"] == pytest.approx(2.0, abs=0.01)
    assert metrics["rollout/gen_tokens_per_s"] == pytest.approx(
        sum(len(a.rollout.token_ids) for a in answers) / 2, 0.01
    )
    assert metrics["time/rollout_parse_match_s"] == pytest.approx(0.75)


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize("num_servers", [1, 4])
def test_every_second_of_both_sides_is_booked_once(plan_of: PlanOf, channel: Channel, num_servers: int) -> None:
    clock = Clock()
    learner = TimeAccount(LearnerActivity, clock)
    servers = [TimeAccount(ServerActivity, clock) for _ in range(num_servers)]
    account = RunAccount(learner, servers)
    with learner.doing(LearnerActivity.WAITING_ROLLOUTS):
        clock.wait(10)  # an evaluation before the step
    report = StepReport(plan_of(2, channel), account)
    with account.syncing():
        clock.wait(5)
    with servers[0].doing(ServerActivity.DECODING):
        clock.wait(5)
        with learner.doing(LearnerActivity.COMPUTING):
            clock.wait(20)
    metrics = closed(report).tallies.reduced()
    shares = {name.removeprefix("share/"): share for name, share in metrics.items() if name.startswith("share/")}
    idle, decoding = 25 - 25 / num_servers, 25 / num_servers
    assert shares == pytest.approx(
        {
            "learner_computing": 20 / 40,
            "learner_waiting_rollouts": 10 / 40,
            "learner_waiting_data": 5 / 40,
            "learner_syncing": 5 / 40,
            "server_decoding": decoding / 40,
            "server_syncing": 5 / 40,
            "server_starved": (idle if channel.decodes else 0) / 40,
            "server_idle": (10 + (idle if not channel.decodes else 0)) / 40,
        }
    )
    assert metrics["time/between_steps_s"] == 10


def test_what_lies_between_two_steps_is_booked_to_the_second(plan_of: PlanOf) -> None:
    clock = Clock()
    account = RunAccount(TimeAccount(LearnerActivity, clock), [])
    before = closed(StepReport(plan_of(0, Channel.A), account)).tallies.reduced()
    with account.learner.doing(LearnerActivity.WAITING_ROLLOUTS):
        clock.wait(3)
    report = StepReport(plan_of(1, Channel.B), account)
    clock.wait(1)
    after = closed(report).tallies.reduced()
    assert before["time/between_steps_s"] == 0
    assert after["time/between_steps_s"] == 3
    assert after["share/learner_waiting_rollouts"] == 0.75
    assert after["time/rollout_wait_s"] == 0
    assert not [name for name in after if name.startswith("share/server_")]


def test_a_step_whose_samples_were_all_lost_still_closes(plan_of: PlanOf, learned_of: LearnedOf) -> None:
    report = opened(plan_of(2, Channel.B))
    report.add_taught(DecodingStart(time.monotonic(), 0.0))
    lost = LostSample(learned_of("{}").rollout.request, "engine_error", "died", retryable=True)
    report.add_taught(lost)
    record = closed(report, loss=0.0, terms={"loss/ce": (0.0, 0)})
    assert record.lost == (lost,)
    assert record.tallies.reduced()["packing/num_packs"] == 0


def test_what_was_in_packs_was_trained_and_a_record_that_stands_twice_counts_twice(
    plan_of: PlanOf, learned_of: LearnedOf
) -> None:
    record = learned_of("{}").rollout.request.encoded.record
    plan = replace(plan_of(2, Channel.B), groups=((record, replace(record, record_id="train:2"), record),))
    request = replace(learned_of("{}").rollout.request, repeat=1)
    assert request.uid == "train:1+1"
    report = opened(plan)
    report.add_taught(of_record(learned_of("{}"), "train:2"))
    report.add_pack(pack(record_ids=("train:2",)))
    report.add_taught(LostSample(request, "engine_error", "died", retryable=True))
    with pytest.raises(RecordsMiscounted, match=r"nor lost: \['train:1'\]"):
        report.check_complete()
    report.add_taught(learned_of("{}"))
    with pytest.raises(RecordsMiscounted, match=r"nor lost: \['train:1'\]"):
        report.check_complete()
    report.add_pack(pack(record_ids=("train:1",)))
    report.check_complete()
    assert closed(report).trained == ("train:2", "train:1")
    report.add_pack(pack(record_ids=("train:1",)))
    with pytest.raises(RecordsMiscounted, match=r"too often: \['train:1'\]"):
        report.check_complete()


def of_record(learned: TaughtRollout, record_id: str) -> TaughtRollout:
    """The same of another record."""
    encoded = learned.rollout.request.encoded
    request = replace(
        learned.rollout.request, encoded=replace(encoded, record=replace(encoded.record, record_id=record_id))
    )
    sample = replace(learned.sample, target=replace(learned.sample.target, record_id=record_id))
    return replace(learned, rollout=replace(learned.rollout, request=request), sample=sample)


def test_answers_to_one_record_are_counted_and_the_record_is_trained_once(
    plan_of: PlanOf, learned_of: LearnedOf
) -> None:
    answers = tuple(learned_of(text + "<|im_end|>", (CAT, DOG)) for text in (answer_text([CAT]), "{}"))
    record = answers[0].rollout.request.encoded.record
    graded = tuple(grade_answer(each.parsed, 5, False, record.objects, RewardRules()) for each in answers)
    paid = TaughtSiblings(
        "train:1", answers, graded, (), 0.2, 0.5, [[0.5] * 5, [-0.5] * 5], tuple(each.sample for each in answers)
    )
    plan = replace(plan_of(2, Channel.R), groups=((record,),), answers_per_record=2)
    report = opened(plan)
    report.add_taught(paid)
    with pytest.raises(RecordsMiscounted, match=r"nor lost: \['train:1', 'train:1'\]"):
        report.check_complete()
    report.add_pack(pack(record_ids=("train:1", "train:1")))
    report.check_complete()
    step = closed(report)
    assert (step.trained, step.silent) == (("train:1",), ())
    metrics = step.tallies.reduced()
    expected = {
        "stage2/channel_r": 1,
        "stage2/raw_rollouts": 2,
        "reward/mean": (1.0 - 0.2) / 2,
        "reward/price": 0.2,
        "reward/precision": 1.0,
        "reward/soft_f1": 2 / (1 + 4),
        "reward/std_in_record": 0.4,
        "reward/silent_records": 0,
        "reward/advantage_std": 0.5,
        "reward/advantage_variance": 0.25,
        "rollout/recall": 1 / 4,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert "rollout/fn_appended" not in metrics
    silent = opened(plan)
    silent.add_taught(replace(paid, advantages=[[0.0]] * 2, samples=()))
    silent.check_complete()
    assert closed(silent).silent == ("train:1",)


def test_steps_logged_together_are_added_before_they_are_divided(plan_of: PlanOf, learned_of: LearnedOf) -> None:
    whole = Tallies()
    for step, answers in enumerate(([answer_text([CAT])], [answer_text([CAT, DOG]), "{}"])):
        report = opened(plan_of(step, Channel.B))
        for answer in answers:
            report.add_taught(learned_of(answer + "<|im_end|>", (CAT, DOG)).timed(0.0))
        whole += closed(report).tallies
    whole += closed(opened(plan_of(2, Channel.A))).tallies
    metrics = whole.reduced()
    assert metrics["rollout/recall"] == pytest.approx(3 / 6)
    assert metrics["stage2/channel_b"] == pytest.approx(2 / 3)
    assert metrics["stage2/raw_rollouts"] == 3
