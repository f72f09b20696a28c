"""What `python -m benchmarks.quality` compares: how people annotated, and how one trains on that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AB, ROLLOUT = "custom.extra.stage2_ab", "custom.extra.rollout_matching"
REPEAT = f"{ROLLOUT}.repeat_terminate"
RATE = "training.learning_rate"


@dataclass(frozen=True)
class Setting:
    """How people annotated: each object with `probability`, its corners off by at most `jitter` of its side.

    Of rendered shapes, or of tiles of real pictures; `changes` are what both stages need for them.
    """

    probability: float
    jitter: float
    is_tiles: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


SETTINGS: Mapping[str, Setting] = {
    "incomplete": Setting(0.45, 0.05),
    "half": Setting(0.6, 0.05),
    "most": Setting(0.8, 0.05),
    "whole": Setting(1.0, 0.0),
    "tiles": Setting(0.45, 0.0, True, {f"{ROLLOUT}.max_new_tokens": 400, f"{REPEAT}.max_object_keys": 32}),
}


@dataclass(frozen=True)
class Arm:
    """What an arm changes in configs/demo/stage2.yaml.

    `told` is what it is told of the annotators' recall, as a factor of the truth; None = nothing, which means 1.
    """

    changes: Mapping[str, Any]
    told: float | None = None

    def overrides(self, setting: Setting) -> dict[str, Any]:
        recall = 1.0 if self.told is None else min(1.0, self.told * setting.probability)
        return {**self.changes, f"{AB}.reward.annotation_recall": recall}


TEACHER: Mapping[str, Any] = {f"{AB}.schedule.pattern": ["A"], f"{AB}.n_softctx_iter": 1, RATE: 5e-4}
PRICED: Mapping[str, Any] = {**TEACHER, f"{AB}.stop_ce_weight": 0.1}
AAB: Mapping[str, Any] = {f"{AB}.schedule.pattern": ["A", "A", "B"], RATE: 5e-4}
REWARD: Mapping[str, Any] = {
    f"{AB}.schedule.pattern": ["R"],
    "training.effective_batch_size": 16,
    "training.per_device_train_batch_size": 16,
    RATE: 2e-4,
}
STRICT: Mapping[str, Any] = {**REWARD, f"{AB}.reward.box_worth": "iou50_95", f"{AB}.reward.desc_share": 1.0}
MIXED: Mapping[str, Any] = {
    f"{AB}.schedule.pattern": ["A", "R"],
    f"{AB}.n_softctx_iter": 1,
    f"{AB}.stop_ce_weight": 0.1,
}
AHEAD: Mapping[str, Any] = {**REWARD, f"{ROLLOUT}.max_lag": 1}

ARMS: Mapping[str, Arm] = {
    # Controls: no rollouts.
    "teacher": Arm(TEACHER),
    "priced": Arm(PRICED),
    "priced_05": Arm({**PRICED, f"{AB}.stop_ce_weight": 0.05}),
    "two_passes": Arm({**TEACHER, f"{AB}.n_softctx_iter": 2}),
    "no_soft_ce": Arm({**TEACHER, f"{AB}.coord_soft_ce_weight": 0.0}),
    # The model's own boxes as context.
    "seed": Arm({**AAB, f"{AB}.prefix_extras": "keep", f"{AB}.prefix_structure_ce_weight": 0}),
    "aab": Arm(AAB),
    "aab_priced": Arm({**AAB, f"{AB}.stop_ce_weight": 0.1}),
    "aab_gate": Arm({**AAB, f"{AB}.supervise_iou": 0.0}),
    # The model's own answers, paid for.
    "reward": Arm(REWARD, told=1.0),
    "reward_ahead": Arm(AHEAD, told=1.0),
    "reward_ahead_raw": Arm({**AHEAD, f"{AB}.reward.importance_clip": 1.0}, told=1.0),
    "reward_blind": Arm(REWARD),
    "reward_half_told": Arm(REWARD, told=0.5),
    "reward_twice_told": Arm(REWARD, told=2.0),
    "reward_answer": Arm({**REWARD, f"{AB}.reward.credit": "answer"}, told=1.0),
    "reward_strict": Arm(STRICT, told=1.0),
    "reward_anchored": Arm({**REWARD, f"{AB}.reward.anchor_ce_weight": 1.0, f"{AB}.stop_ce_weight": 0.1}, told=1.0),
    "mixed": Arm({**REWARD, **MIXED}, told=1.0),
    "mixed_strict": Arm({**STRICT, **MIXED}, told=1.0),
}

SCORES = {
    "F1": "eval_rollout_f1_iou50",
    "recall": "eval_rollout_recall_iou50",
    "precision": "eval_rollout_precision_iou50",
    "F1 desc": "eval_rollout_f1_desc_iou50",
    "mean F1 desc": "eval_rollout_f1_desc_iou50_95",
    "mean F1": "eval_rollout_f1_iou50_95",
    "valid": "eval_rollout_sample_valid_pred_rate",
}
"""What is told of an arm, and the metric that it is."""

CALIBRATIONS: Mapping[str, tuple[str, float | None]] = {
    "whole": ("train.jsonl", None),
    "annotated": ("train_annotated.jsonl", None),
    "told": ("train_annotated.jsonl", 1.0),
}
"""On which file the operating point is chosen, none of its images trained or scored on, and what it is told."""
