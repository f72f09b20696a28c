"""The YAML keys are public: taking one away or changing a default breaks somebody's run.

Each key does what it says, or is refused: `config_keys.yaml` names a test for every one of them.
"""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

from shared.config.keys import known_keys

TESTS = Path(__file__).parents[1]
AB, ROLLOUT = "custom.extra.stage2_ab", "custom.extra.rollout_matching"

DEFAULTS = {
    "model.dtype": "auto",
    "model.attn_impl": "auto",
    "template.max_pixels": None,
    "template.min_pixels": None,
    "template.system": None,
    "tuner.train_type": "full",
    "tuner.use_dora": False,
    "tuner.lora_rank": 16,
    "tuner.lora_alpha": 32,
    "tuner.lora_dropout": 0,
    "tuner.target_modules": ("all-linear",),
    "tuner.target_regex": None,
    "tuner.freeze_llm": False,
    "tuner.freeze_vit": False,
    "tuner.freeze_aligner": False,
    "tuner.modules_to_save": (),
    "tuner.coordinate_rows": False,
    "training.per_device_train_batch_size": 1,
    "training.optim": "adamw",
    "training.embed_lr": None,
    "training.eval_on_start": False,
    "training.metric_for_best_model": "eval_rollout_f1_desc_iou50_95",
    "training.packing_buffer": 256,
    "training.packing_min_fill_ratio": 0.7,
    "training.packing_drop_last": True,
    "training.metrics_port": 0,
    "custom.object_ordering": "sorted",
    "custom.coordinate_space": "px",
    "custom.on_bad_record": "error",
    "custom.on_long_target": "error",
    "custom.poly_as_bbox": False,
    "custom.user_prompt": None,
    f"{AB}.n_softctx_iter": 2,
    f"{AB}.softctx_temperature": 1,
    f"{AB}.desc_ce_weight": 1,
    f"{AB}.bbox_l1_weight": 2,
    f"{AB}.bbox_giou_weight": 1,
    f"{AB}.coord_gate_weight": 1,
    f"{AB}.coord_soft_ce_weight": 0,
    f"{AB}.coord_w1_weight": 0,
    f"{AB}.target_sigma": 2,
    f"{AB}.stop_ce_weight": 1,
    f"{AB}.prefix_structure_ce_weight": 1,
    f"{AB}.prefix_extras": "drop",
    f"{AB}.supervise_iou": 0.5,
    f"{AB}.reward.samples_per_record": 4,
    f"{AB}.reward.temperature": 1,
    f"{AB}.reward.iou_min": 0.5,
    f"{AB}.reward.box_worth": "iou",
    f"{AB}.reward.desc_share": 0.5,
    f"{AB}.reward.invalid_cost": 0.3,
    f"{AB}.reward.price": None,
    f"{AB}.reward.price_decay": 0.9,
    f"{AB}.reward.credit": "object",
    f"{AB}.reward.importance_clip": 2,
    f"{AB}.reward.anchor_ce_weight": 0,
    f"{AB}.reward.annotation_recall": 1,
    f"{AB}.channel_b.mode": "step",
    f"{AB}.channel_b.rollouts_per_step": None,
    f"{AB}.channel_b.enable_pipeline": None,
    f"{AB}.channel_b.rollout_decode_batch_size": None,
    f"{AB}.guard.enabled": True,
    f"{AB}.guard.action": "warn",
    f"{AB}.guard.pred_per_gt_max": 1.5,
    f"{AB}.guard.truncated_rate_max": 0.2,
    f"{AB}.guard.valid_rate_min": 0.8,
    f"{AB}.guard.window": 10,
    f"{ROLLOUT}.rollout_backend": "vllm",
    f"{ROLLOUT}.decode_mode": "greedy",
    f"{ROLLOUT}.temperature": 0,
    f"{ROLLOUT}.candidate_top_k": 5,
    f"{ROLLOUT}.maskiou_resolution": 256,
    f"{ROLLOUT}.maskiou_gate": 0.3,
    f"{ROLLOUT}.fp_cost": 1,
    f"{ROLLOUT}.fn_cost": 1,
    f"{ROLLOUT}.post_rollout_pack_scope": "micro",
    f"{ROLLOUT}.max_lag": 0,
    f"{ROLLOUT}.deterministic": False,
    f"{ROLLOUT}.vllm.mode": "server",
    f"{ROLLOUT}.vllm.max_model_len": None,
    f"{ROLLOUT}.vllm.sync.mode": "auto",
    f"{ROLLOUT}.vllm.sync.fallback_to_full": True,
    f"{ROLLOUT}.vllm.sync.transport": "file",
    f"{ROLLOUT}.vllm.server.host": "127.0.0.1",
    f"{ROLLOUT}.vllm.server.timeout_s": 240,
    f"{ROLLOUT}.vllm.server.stall_timeout_s": 120,
}

NAMED = {
    "global_max_length": "",
    "model": "model",
    "training": "output_dir num_train_epochs max_steps effective_batch_size gradient_accumulation_steps learning_rate "
    "vit_lr aligner_lr weight_decay max_grad_norm warmup_ratio lr_scheduler_type seed gradient_checkpointing "
    "dataloader_drop_last dataloader_num_workers logging_steps logging_first_step eval_strategy eval_steps "
    "save_strategy save_steps save_total_limit save_only_model metric_for_best_model resume_from_checkpoint report_to "
    "packing",
    "custom": "trainer_variant train_jsonl val_jsonl train_sample_limit val_sample_limit",
    AB: "schedule.pattern",
    ROLLOUT: "max_new_tokens top_p top_k repetition_penalty rollout_generate_batch_size rollout_infer_batch_size",
    f"{ROLLOUT}.repeat_terminate": "enabled min_new_tokens max_consecutive_token_repeats ngram_size ngram_repeats "
    "max_object_keys",
    f"{ROLLOUT}.vllm": "enable_lora gpu_memory_utilization tensor_parallel_size enforce_eager max_num_seqs",
    f"{ROLLOUT}.vllm.sync": "weights_root",
    f"{ROLLOUT}.vllm.server": "infer_timeout_s token_file image_root servers servers[].base_url servers[].group_port",
    f"{ROLLOUT}.monitor_dump": "enabled every_steps max_events max_samples max_text_chars",
}

TABLE = yaml.safe_load((Path(__file__).parent / "config_keys.yaml").read_text())
ROWS = [
    (key.replace("AB.", f"{AB}.").replace("ROLLOUT.", f"{ROLLOUT}."), file, test)
    for file, tests in TABLE.items()
    for test, keys in tests.items()
    for key in keys
]


@cache
def names_in(file: str) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((TESTS / file).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and node.name.startswith("test_")}


def test_every_key_has_a_test_of_its_behaviour() -> None:
    keys = {key.path for key in known_keys() if key.section is None}
    held = {key for key, _, _ in ROWS}
    assert sorted(keys - held) == [], "name a test of each in config_keys.yaml"
    assert sorted(held - keys) == [], "there is no such key"


@pytest.mark.parametrize(("key", "file", "test"), ROWS)
def test_the_named_test_is_there(key: str, file: str, test: str) -> None:
    assert test in names_in(file)


@pytest.mark.parametrize(("path", "default"), DEFAULTS.items())
def test_a_default_is_kept(path: str, default: object) -> None:
    (key,) = [key for key in known_keys() if key.path == path]
    assert key.field.default == default


def test_every_public_key_is_kept() -> None:
    public = {f"{section}.{name}" if name else section for section, names in NAMED.items() for name in names.split(" ")}
    assert public - {key.path for key in known_keys()} == set()
