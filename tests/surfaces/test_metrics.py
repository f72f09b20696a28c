"""The metric names that dashboards, configurations and papers are written with: none of them goes away."""

from learner.detection.prediction import DropReason
from shared.metrics import METRICS, metric_named

FROZEN = """
stage2/channel_a stage2/channel_b stage2/channel_r
stage2/raw_rollouts stage2/invalid_rollout stage2/empty_rollout stage2/policy_lag
loss loss/reward loss/ce loss/bbox_l1 loss/bbox_giou loss/coord loss/coord_mass grad_norm learning_rate epoch
rollout/parse_truncated_rate rollout/parse_dropped_invalid rollout/parse_obj_valid_frac rollout/sample_valid_pred_rate
rollout/sample_any_match_rate rollout/precision rollout/recall rollout/f1 rollout/matched_maskiou_mean
rollout/valid_pred_objects rollout/gt_objects rollout/matched_for_supervision rollout/fn_appended rollout/fp
rollout/gating_rejections rollout/duplicate_rate rollout/pred_per_gt rollout/desc_accuracy_on_matched
rollout/gen_new_tokens_mean rollout/gen_new_tokens_p90 rollout/gen_new_tokens_p99 rollout/gen_tokens_per_s
reward/mean reward/price reward/soft_f1 reward/precision reward/std_in_record reward/silent_records
reward/advantage_std reward/importance_mean reward/importance_clipped reward/entropy
packing/post_rollout_fill packing/post_rollout_segments packing/num_packs
time/step_s time/rollout_generate_s time/rollout_wait_s time/rollout_parse_match_s time/encode_s
time/post_rollout_pack_s time/forward_s time/backward_s time/sync_s time/optimizer_s
share/learner_computing share/learner_waiting_rollouts share/learner_waiting_data share/learner_syncing
share/server_decoding share/server_syncing share/server_starved share/server_idle
eval_rollout_precision eval_rollout_recall eval_rollout_f1 eval_rollout_pred_objects eval_rollout_gt_objects
eval_rollout_matched eval_rollout_fp eval_rollout_fn eval_rollout_matched_maskiou_mean
eval_rollout_parse_truncated_rate eval_rollout_sample_valid_pred_rate
eval_rollout_f1_iou50 eval_rollout_f1_iou50_95 eval_rollout_f1_desc_iou50 eval_rollout_f1_desc_iou50_95
eval_coco_ap eval_coco_ap50 eval_coco_ap75 eval_coco_ar100
boxloop_server_seconds_total boxloop_server_generated_tokens_total boxloop_server_running boxloop_server_waiting
boxloop_server_policy_step
"""

DROP_REASONS = """
incomplete bad_json bad_key not_object extra_key missing_key bad_desc poly bbox_2d not_coordinates arity degenerate
"""


def test_no_name_has_gone() -> None:
    assert [name for name in FROZEN.split() if name not in METRICS] == []


def test_the_counts_of_dropped_objects_keep_their_names() -> None:
    assert {reason.name for reason in DropReason} == set(DROP_REASONS.split())
    assert metric_named("rollout/parse_dropped_bad_json").reduction == "sum"
