"""Keys that configurations of CoordExp and ms-swift have, and what became of each: one table.

python -m shared.config.migration > docs/migrating.md
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PAGE = "docs/migrating.md"

HEADER = """# From CoordExp and ms-swift

<!-- Made by `python -m shared.config.migration > docs/migrating.md`; a test holds it to the table in the code. -->

Most keys of a CoordExp Stage-2 configuration mean here what they meant there. This is what does not carry over:
**renamed** keys have another name, **dropped** ones are always so or have no part here, **differing** ones are accepted
and do something else. A key that is refused names its row of this table.

Data: records are lines of JSON with `images`, `width`, `height` and `objects` ([data.md](data.md)). Boxes that are
already normalised to 0..999 need `custom.coordinate_space: norm1000`; `<|coord_k|>` texts need nothing. There are no
`messages`: the prompt is made from the record.

| key there | what became of it | here |
|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """`here` is the new key and what is to be known, or why there is none."""

    fate: Literal["renamed", "dropped", "differs"]
    here: str


ROWS: Mapping[str, Row] = {
    # sections
    "stage2_ab": Row("renamed", "`custom.extra.stage2_ab`"),
    "rollout_matching": Row("renamed", "`custom.extra.rollout_matching`"),
    "deepspeed": Row("dropped", "one learner process holds the model; adapters and frozen parts save memory"),
    "data": Row("dropped", "files are named by `custom.train_jsonl` and `val_jsonl`"),
    "debug": Row("dropped", "give `training.output_dir` and `custom.train_sample_limit` on the command line"),
    # the model and the template
    "model.torch_dtype": Row("renamed", "`model.dtype`: auto, bfloat16 or float32"),
    "model.model_type": Row("dropped", "the checkpoint's config.json says it"),
    "template.template": Row("dropped", "the checkpoint's own chat template is used"),
    "template.truncation_strategy": Row("dropped", "nothing is cut; `custom.on_long_target` says what is skipped"),
    "template.max_length": Row("renamed", "`global_max_length`"),
    "template.max_pixels": Row("differs", "within the sizes of the image processor; leave it out for its own"),
    # the tuner
    "tuner.use_swift_lora": Row("dropped", "adapters are PEFT's"),
    "tuner.use_rslora": Row("dropped", "adapters are scaled by alpha / rank"),
    "tuner.lora_bias": Row("dropped", "biases under adapters stay as they are"),
    "tuner.lora_dtype": Row("dropped", "adapters are float32"),
    "tuner.use_dora": Row("differs", "`true` alone means `train_type: lora`, as DoRA is an adapter"),
    # the run
    "training.optimizer": Row("renamed", "`training.optim`; `vit_lr` and `aligner_lr` alone make rates of their own"),
    "training.bf16": Row("renamed", "`model.dtype: bfloat16`; auto takes it where the device has it"),
    "training.fp16": Row("dropped", "matrices are multiplied in bfloat16 or float32 (`model.dtype`)"),
    "training.lr_scheduler_type": Row(
        "differs", "`cosine_warmup_with_min_lr`: `cosine` with `warmup_ratio`, ends at 0"
    ),
    "training.lr_scheduler_kwargs": Row("dropped", "`lr_scheduler_type` has no further settings but `lr_decay_ratio`"),
    "training.warmup_steps": Row("renamed", "`training.warmup_ratio`, a share of all steps"),
    "training.max_length": Row("renamed", "`global_max_length`, the capacity of a pack in tokens"),
    "training.packing_length": Row("renamed", "`global_max_length`, the capacity of a pack in tokens"),
    "training.eval_packing": Row("dropped", "evaluations decode; they pack nothing"),
    "training.evaluation_strategy": Row("renamed", "`training.eval_strategy`"),
    "training.per_device_eval_batch_size": Row("dropped", "servers batch evaluations as they batch rollouts"),
    "training.effective_batch_size": Row("differs", "must divide exactly into micro-steps; nothing is rounded up"),
    "training.dataloader_drop_last": Row("differs", "must be true: every optimizer step is whole, in each mode"),
    "training.dataloader_pin_memory": Row("dropped", "packs go to a GPU from pinned memory always"),
    "training.dataloader_prefetch_factor": Row("dropped", "packs are laid out one ahead of the learner"),
    "training.dataloader_persistent_workers": Row("dropped", "workers are threads of the learner"),
    "training.metric_for_best_model": Row("differs", "a score of answers, such as eval_rollout_f1_desc_iou50_95"),
    "training.greater_is_better": Row("dropped", "of every score the highest is the best"),
    "training.save_delay_steps": Row("dropped", "`save_steps` and `save_total_limit` bound what is written"),
    "training.save_last_epoch": Row("dropped", "the last step is saved always, unless `save_strategy` is no"),
    "training.save_safetensors": Row("dropped", "nothing but safetensors is written"),
    "training.add_version": Row("dropped", "a run writes into its `training.output_dir` itself"),
    "training.logging_dir": Row("dropped", "everything a run writes lies in `training.output_dir`"),
    "training.run_name": Row("dropped", "a run is named by its `training.output_dir`"),
    "training.remove_unused_columns": Row("dropped", "records keep what training needs"),
    # the task
    "custom.emit_norm": Row("dropped", "answers are tokens of 0..999; `coordinate_space` says what data hold"),
    "custom.coord_tokens": Row("dropped", "answers are written in tokens of 0..999 always"),
    "custom.coord_soft_ce_w1": Row("renamed", "`custom.extra.stage2_ab.coord_soft_ce_weight` and `coord_w1_weight`"),
    "custom.json_format": Row("dropped", "an answer is one JSON object: object_1, object_2, …"),
    "custom.dump_conversation_path": Row("renamed", "`custom.extra.rollout_matching.monitor_dump.enabled`"),
    # both channels
    "custom.extra.stage2_ab.schedule.b_ratio": Row("renamed", "`schedule.pattern`: 0.33 is [A, A, B]"),
    "custom.extra.stage2_ab.bbox_smoothl1_weight": Row("renamed", "`bbox_l1_weight`"),
    "custom.extra.stage2_ab.desc_ce_weight_matched": Row("renamed", "`desc_ce_weight`, with `prefix_extras: drop`"),
    "custom.extra.stage2_ab.semantic_desc_gate": Row("dropped", "objects are matched by place alone"),
    "custom.extra.stage2_ab.channel_b.desc_ce_weight_matched": Row(
        "renamed", "`custom.extra.stage2_ab.desc_ce_weight`, with `prefix_extras: drop`"
    ),
    "custom.extra.stage2_ab.channel_b.semantic_desc_gate": Row("dropped", "objects are matched by place alone"),
    "custom.extra.stage2_ab.channel_b.enable_pipeline": Row("differs", "on by default in server mode"),
    "custom.extra.stage2_ab.channel_b.rollout_decode_batch_size": Row(
        "differs",
        "answers in flight per server, not the size of a chunk: a small number leaves a server idle; leave it null",
    ),
    # decoding
    "custom.extra.rollout_matching.rollout_generate_batch_size": Row(
        "differs", "records of a micro-step, a divisor of `effective_batch_size`; there it multiplied the step"
    ),
    "custom.extra.rollout_matching.post_rollout_pack_scope": Row("differs", "micro; a step's answers share its packs"),
    "custom.extra.rollout_matching.decoding": Row("renamed", "`temperature`, `top_p`, `top_k` stand one level higher"),
    "custom.extra.rollout_matching.top_k": Row("differs", "0 is off, not -1"),
    "custom.extra.rollout_matching.num_beams": Row("dropped", "one answer is decoded, greedily or sampled"),
    "custom.extra.rollout_matching.rollout_buffer": Row("dropped", "each rollout is learned once; see `max_lag`"),
    "custom.extra.rollout_matching.offload": Row("dropped", "servers and learner have devices of their own"),
    "custom.extra.rollout_matching.ot_cost": Row("dropped", "polygons are learned as their boxes (`poly_as_bbox`)"),
    "custom.extra.rollout_matching.ot_epsilon": Row("dropped", "polygons are learned as their boxes (`poly_as_bbox`)"),
    "custom.extra.rollout_matching.ot_iters": Row("dropped", "polygons are learned as their boxes (`poly_as_bbox`)"),
    "custom.extra.rollout_matching.repeat_terminate.max_object_keys": Row("differs", "0 is off, not null"),
    "custom.extra.rollout_matching.vllm.mode": Row("differs", "server; colocate is not built"),
    "custom.extra.rollout_matching.vllm.enable_lora": Row("differs", "must be false: adapters reach servers merged"),
    "custom.extra.rollout_matching.vllm.enable_prefix_caching": Row("dropped", "it is on; each update makes it stale"),
    "custom.extra.rollout_matching.vllm.sleep_level": Row("dropped", "servers have devices of their own"),
    "custom.extra.rollout_matching.vllm.server.infer_timeout_s": Row("differs", "above 0, or null for none"),
    "custom.extra.rollout_matching.vllm.server.servers[].group_port": Row(
        "differs", "accepted and not used: weights travel by `sync.transport`"
    ),
}
"""By the dotted path there."""


def row_of(path: str) -> str | None:
    """The row for a key at `path`, or for one of that name elsewhere, as a sentence; None for a key without one."""
    path = re.sub(r"\[\d+\]", "[]", path)
    found = ROWS.get(path)
    if found is None:
        name = path.rpartition(".")[2]
        namesakes = (row for key, row in ROWS.items() if key.rpartition(".")[2] == name)
        found = next((row for row in namesakes if row.fate != "differs"), None)
    return None if found is None else f"{found.fate}, see {PAGE}: {found.here}"


def migration_page() -> str:
    """docs/migrating.md."""
    rows = "".join(f"| `{key}` | {row.fate} | {row.here} |\n" for key, row in ROWS.items())
    return HEADER + rows


if __name__ == "__main__":
    print(migration_page(), end="")
