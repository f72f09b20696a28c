"""The metric catalogue: what each number in logging.jsonl and on /metrics means, and how steps are added up.

`python -m shared.metrics > docs/metrics.md` prints it. A logged value is reduced from the sums over the logged steps,
never from their means.
"""

from dataclasses import dataclass
from typing import Literal

Reduction = Literal["ratio", "sum", "last", "p90", "p99"]
"""ratio: Σ numerator / Σ denominator · sum: Σ numerator · last: of the newest step · p90, p99: over all samples."""

Steps = Literal["all", "A", "B", "R", "B, R", "eval", "server"]

REASON = "<reason>"
"""Stands for the names of the parser's drop reasons in a metric's name."""


@dataclass(frozen=True)
class Metric:
    """One metric. `steps` says on which optimizer steps it exists; "eval" = evaluation records, "server" = /metrics."""

    name: str
    unit: str
    reduction: Reduction
    steps: Steps
    numerator: str
    denominator: str = ""

    @property
    def prometheus_name(self) -> str:
        """The name on the learner's /metrics."""
        return self.name.replace("/", "_")


def _ratio(name: str, unit: str, steps: Steps, numerator: str, denominator: str) -> Metric:
    return Metric(name, unit, "ratio", steps, numerator, denominator)


def _sum(name: str, unit: str, steps: Steps, what: str) -> Metric:
    return Metric(name, unit, "sum", steps, what)


def _last(name: str, unit: str, steps: Steps, what: str) -> Metric:
    return Metric(name, unit, "last", steps, what)


def _seconds(name: str, steps: Steps, what: str) -> Metric:
    return _ratio(name, "s", steps, f"seconds {what}", "logged steps" if steps == "all" else f"logged {steps} steps")


STAGE2 = (
    _ratio("stage2/channel_a", "share", "all", "A steps", "logged steps"),
    _ratio("stage2/channel_b", "share", "all", "B steps", "logged steps"),
    _ratio("stage2/channel_r", "share", "all", "R steps", "logged steps"),
    _sum("stage2/raw_rollouts", "samples", "B, R", "decoded answers"),
    _sum(
        "stage2/invalid_rollout", "samples", "B, R", "answers without a valid object that are not a legal empty answer"
    ),
    _sum("stage2/empty_rollout", "samples", "B, R", "answers that are a complete {}"),
    _ratio(
        "stage2/policy_lag", "steps", "B, R", "learner step − step of the answer's policy version", "decoded answers"
    ),
)

OPTIMISATION = (
    _ratio("loss", "nats", "all", "objective of each step", "logged steps"),
    _ratio(
        "loss/ce", "nats", "all", "weighted cross-entropy of all tokens", "samples times the mean weight of an answer"
    ),
    _ratio("loss/bbox_l1", "canvas", "all", "mean |c − t| of each box's 4 values", "supervised boxes"),
    _ratio("loss/bbox_giou", "1", "all", "1 − GIoU of each box", "supervised boxes"),
    _ratio("loss/coord", "nats", "all", "weighted coordinate terms", "supervised coordinates"),
    _ratio("loss/coord_mass", "probability", "all", "mass inside the coordinate vocabulary", "supervised coordinates"),
    _ratio(
        "loss/reward", "1", "R", "policy-gradient surrogate; its sign means nothing", "answers times the mean weight"
    ),
    _last("grad_norm", "1", "all", "gradient norm before clipping"),
    _last("learning_rate", "1", "all", "learning rate of the language model's group"),
    _last("epoch", "epochs", "all", "records consumed / records of the data set"),
)

ROLLOUT = (
    _ratio("rollout/parse_truncated_rate", "share", "B, R", "truncated answers", "decoded answers"),
    _sum("rollout/parse_dropped_invalid", "objects", "B, R", "dropped objects, whatever the reason"),
    _sum(f"rollout/parse_dropped_{REASON}", "objects", "B, R", "objects dropped for this reason"),
    _ratio("rollout/parse_obj_valid_frac", "share", "B, R", "valid objects", "valid and dropped objects"),
    _ratio("rollout/sample_valid_pred_rate", "share", "B, R", "answers with a valid object", "decoded answers"),
    _ratio(
        "rollout/sample_sound_rate", "share", "B, R", "answers with a valid object, or rightly {}", "decoded answers"
    ),
    _ratio("rollout/sample_any_match_rate", "share", "B, R", "answers with a matched object", "decoded answers"),
    _ratio("rollout/precision", "share", "B, R", "matched objects", "valid predicted objects"),
    _ratio("rollout/recall", "share", "B, R", "matched objects", "ground-truth objects"),
    _ratio("rollout/f1", "share", "B, R", "2 × matched objects", "valid predicted + ground-truth objects"),
    _ratio("rollout/matched_maskiou_mean", "IoU", "B, R", "similarity of each matched pair", "matched objects"),
    _ratio(
        "rollout/desc_accuracy_on_matched",
        "share",
        "B, R",
        "matched objects with their truth's desc",
        "matched objects",
    ),
    _ratio("rollout/valid_pred_objects", "objects", "B, R", "valid predicted objects", "decoded answers"),
    _ratio("rollout/gt_objects", "objects", "B, R", "ground-truth objects", "decoded answers"),
    _sum("rollout/matched_for_supervision", "objects", "B", "objects taught in the model's own coordinates"),
    _sum("rollout/fn_appended", "objects", "B", "objects taught in the truth's coordinates"),
    _sum("rollout/fp", "objects", "B, R", "extra predictions"),
    _sum("rollout/gating_rejections", "pairs", "B, R", "candidate pairs under maskiou_gate"),
    _ratio("rollout/duplicate_rate", "share", "B, R", "repeats of one desc at IoU ≥ 0.9", "valid predicted objects"),
    _ratio("rollout/pred_per_gt", "1", "B, R", "valid predicted objects", "ground-truth objects"),
    _ratio("rollout/gen_new_tokens_mean", "tokens", "B, R", "new tokens", "decoded answers"),
    Metric("rollout/gen_new_tokens_p90", "tokens", "p90", "B, R", "new tokens of each answer"),
    Metric("rollout/gen_new_tokens_p99", "tokens", "p99", "B, R", "new tokens of each answer"),
    _ratio("rollout/gen_tokens_per_s", "tokens/s", "B, R", "new tokens", "seconds from first request to last answer"),
)

REWARD = (
    _ratio("reward/mean", "1", "R", "value − price × objects named − cost of each answer", "sampled answers"),
    _ratio("reward/price", "1", "R", "what naming an object cost", "records"),
    _ratio("reward/soft_f1", "share", "R", "2 × quality of the best assignments", "objects named + annotated ones"),
    _ratio("reward/precision", "1", "R", "quality of the best assignments", "objects named"),
    _sum("reward/annotated", "objects", "R", "annotated objects, once for each answer"),
    _ratio("reward/std_in_record", "1", "R", "standard deviation of the rewards of one record's answers", "records"),
    _ratio("reward/silent_records", "share", "R", "records whose answers were all alike", "records"),
    _ratio("reward/skipped_records", "share", "R", "records left out because advantages are noise", "records"),
    _last("reward/advantage_std", "1", "R", "what advantages are divided by"),
    _ratio("reward/advantage_variance", "1", "R", "squared advantages of this step", "sampled tokens"),
    _ratio("reward/importance_mean", "1", "R", "weights of tokens by policy and serving policy", "sampled tokens"),
    _ratio("reward/importance_clipped", "share", "R", "tokens whose weight was cut or left out", "sampled tokens"),
    _ratio("reward/entropy", "nats", "R", "−log-probability of sampled tokens", "sampled tokens"),
)

PACKING = (
    _ratio("packing/post_rollout_fill", "share", "all", "tokens in packs", "packs × capacity"),
    _ratio("packing/post_rollout_segments", "targets", "all", "targets", "packs"),
    _ratio("packing/num_packs", "packs", "all", "packs", "logged steps"),
    _ratio("packing/tokens_per_s", "tokens/s", "all", "tokens in packs", "seconds of steps"),
)

TIME = (
    _seconds("time/step_s", "all", "from the step's begin to its end"),
    _seconds("time/between_steps_s", "all", "of evaluation and checkpoint since the step before it ended"),
    _seconds("time/rollout_generate_s", "all", "from the first request to the last answer it uses; 0 on A steps"),
    _seconds("time/rollout_wait_s", "B, R", "in which the learner had nothing but rollouts to wait for"),
    _seconds("time/overlap_s", "B, R", "of learner compute between the arrival of the first and the last answer"),
    _seconds("time/rollout_parse_match_s", "B, R", "of parsing, matching and making targets"),
    _seconds("time/encode_s", "all", "of reading and encoding records"),
    _seconds("time/post_rollout_pack_s", "all", "of packing and collating"),
    _seconds("time/forward_s", "all", "of forward passes"),
    _seconds("time/backward_s", "all", "of backward passes"),
    _seconds("time/sync_s", "all", "of publishing weights"),
    _seconds("time/optimizer_s", "all", "of the optimizer"),
)

SHARES = (
    *(
        _ratio(
            f"share/learner_{name}", "share", "all", f"seconds the learner was {what}", "seconds of and between steps"
        )
        for name, what in (
            ("computing", "computing or saving"),
            ("waiting_rollouts", "waiting for rollouts, evaluations among them"),
            ("waiting_data", "waiting for data"),
            ("syncing", "publishing weights"),
        )
    ),
    *(
        _ratio(
            f"share/server_{name}",
            "share",
            "all",
            f"seconds the servers {what}",
            "seconds of and between steps × servers",
        )
        for name, what in (
            ("decoding", "had a request"),
            ("syncing", "were sent weights"),
            ("starved", "had no request, on B steps"),
            ("idle", "had no request, on A steps and between steps"),
        )
    ),
)

EVALUATION_SCORES = (
    _ratio("eval_rollout_precision", "share", "eval", "matched objects", "valid predicted objects"),
    _ratio("eval_rollout_recall", "share", "eval", "matched objects", "ground-truth objects"),
    _ratio("eval_rollout_f1", "share", "eval", "2 × matched objects", "valid predicted + ground-truth objects"),
    _ratio("eval_rollout_precision_iou50", "share", "eval", "objects matched at IoU ≥ 0.5", "valid predicted objects"),
    _ratio("eval_rollout_recall_iou50", "share", "eval", "objects matched at IoU ≥ 0.5", "ground-truth objects"),
    *(
        _ratio(
            f"eval_rollout_{name}_iou50{suffix}",
            "share",
            "eval",
            f"2 × objects matched{among} at {thresholds}",
            f"{times}as eval_rollout_f1",
        )
        for name, among in (("f1", ""), ("f1_desc", " among equal descs"))
        for suffix, thresholds, times in (
            ("", "IoU ≥ 0.5", ""),
            ("_95", "IoU ≥ 0.50, 0.55, … 0.95, added up", "10 × "),
        )
    ),
    _ratio("eval_rollout_matched_maskiou_mean", "IoU", "eval", "similarity of each matched pair", "matched objects"),
    _ratio("eval_rollout_sample_valid_pred_rate", "share", "eval", "answers with a valid object", "decoded answers"),
    *(
        _last(f"eval_coco_{name}", "share", "eval", what)
        for name, what in (
            ("ap", "COCO AP over IoU 0.50:0.95; a category is a desc, the score the mean of coordinate probabilities"),
            ("ap50", "COCO AP at IoU 0.50"),
            ("ap75", "COCO AP at IoU 0.75"),
            ("ap_small", "COCO AP of objects under 32² px"),
            ("ap_medium", "COCO AP of objects of 32² to 96² px"),
            ("ap_large", "COCO AP of larger objects"),
            ("ar1", "COCO AR of 1 prediction an image and category"),
            ("ar10", "COCO AR of up to 10"),
            ("ar100", "COCO AR of up to 100"),
            ("ar_small", "COCO AR of objects under 32² px"),
            ("ar_medium", "COCO AR of objects of 32² to 96² px"),
            ("ar_large", "COCO AR of larger objects"),
            ("agnostic_ap", "COCO AP with all objects in one category"),
            ("agnostic_ap50", "COCO AP at IoU 0.50 with all objects in one category"),
            ("agnostic_ar100", "COCO AR of up to 100 with all objects in one category"),
        )
    ),
)
"""Better when higher, so `training.metric_for_best_model` may be any of them."""

EVALUATION_COUNTS = (
    _sum("eval_rollout_pred_objects", "objects", "eval", "valid predicted objects"),
    _sum("eval_rollout_gt_objects", "objects", "eval", "ground-truth objects"),
    _sum("eval_rollout_matched", "objects", "eval", "matched objects"),
    _sum("eval_rollout_fp", "objects", "eval", "extra predictions"),
    _sum("eval_rollout_fn", "objects", "eval", "missing objects"),
    _sum("eval_rollout_lost", "samples", "eval", "records that no server answered; they count as empty answers"),
    _ratio("eval_rollout_parse_truncated_rate", "share", "eval", "truncated answers", "decoded answers"),
)

SERVER = (
    _sum("boxloop_server_seconds_total", "s", "server", "seconds by activity: decoding, syncing, idle"),
    _sum("boxloop_server_generated_tokens_total", "tokens", "server", "tokens decoded"),
    _last("boxloop_server_running", "samples", "server", "samples being decoded"),
    _last("boxloop_server_waiting", "samples", "server", "samples waiting for a free row"),
    _last("boxloop_server_open_samples", "samples", "server", "samples of open batches"),
    _last("boxloop_server_policy_step", "steps", "server", "optimizer updates the weights have seen; −1 = none"),
)

SECTIONS = {
    "Schedule and answers": STAGE2,
    "Loss and optimizer": OPTIMISATION,
    "Rollouts": ROLLOUT,
    "Rewards": REWARD,
    "Packing": PACKING,
    "Time": TIME,
    "Shares of the wall time": SHARES,
    "Evaluation": EVALUATION_SCORES + EVALUATION_COUNTS,
    "Rollout server": SERVER,
}

METRICS: dict[str, Metric] = {metric.name: metric for section in SECTIONS.values() for metric in section}


def metric_named(name: str) -> Metric:
    """The catalogue's entry for a logged name; raises KeyError for one it does not hold."""
    if name in METRICS:
        return METRICS[name]
    family, _, reason = name.rpartition("_dropped_")
    if family and reason:
        return METRICS[f"{family}_dropped_{REASON}"]
    raise KeyError(name)


def catalogue_page() -> str:
    """The catalogue as Markdown."""
    lines = [
        "# Metrics",
        "",
        "Printed by `python -m shared.metrics`. `logging.jsonl` holds one record per logged optimizer step; a value",
        "is reduced from the sums over the steps since the last record. On the learner's `/metrics`, `_` is for `/`.",
        "",
        "Reductions: `ratio` = Σ numerator / Σ denominator, `sum` = Σ, `last` = of the newest step, `p90` and `p99` =",
        "over all samples. Steps: on which optimizer steps the metric exists; `eval` = in evaluation records,",
        "`server` = on a rollout server's `/metrics`.",
    ]
    for title, metrics in SECTIONS.items():
        lines += ["", f"## {title}", "", "| name | unit | reduction | steps | numerator | denominator |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| `{m.name}` | {m.unit} | {m.reduction} | {m.steps} | {_cell(m.numerator)} | {_cell(m.denominator)} |"
            for m in metrics
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(catalogue_page())
