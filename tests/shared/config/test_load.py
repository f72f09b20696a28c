from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.config.load import load_config, load_with_origins, save_resolved
from shared.config.models import Config
from shared.errors import ConfigError

STAGE2 = """
global_max_length: 1024
model: {model: tiny}
training: {output_dir: runs/test}
custom:
  trainer_variant: stage2_ab_training
  train_jsonl: train.jsonl
  val_jsonl: val.jsonl
  extra:
    stage2_ab: {schedule: {pattern: [A, A, B]}}
    rollout_matching: {rollout_backend: hf, max_new_tokens: 128}
"""
ROLLOUT = "custom.extra.rollout_matching"
AB = "custom.extra.stage2_ab"
STAGE1 = "custom.trainer_variant=stage1_sft"
MICRO = f"{AB}.channel_b.mode=micro"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "stage2.yaml"
    file.write_text(STAGE2)
    return file


def refusal(path: Path, overrides: Sequence[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_minimal_stage2_config_loads_with_the_defaults(path: Path) -> None:
    config = load_config(path)
    assert config.custom.extra.stage2_ab.schedule.pattern == ("A", "A", "B")
    assert config.custom.extra.rollout_matching.vllm.server.stall_timeout_s == 120
    assert (config.effective_batch_size, config.gradient_accumulation_steps) == (1, 1)
    assert config.pipeline
    with pytest.raises(ValidationError, match="frozen"):
        config.training.seed = 3  # type: ignore[misc]


def test_stage1_needs_no_stage2_section_and_no_servers(tmp_path: Path) -> None:
    file = tmp_path / "stage1.yaml"
    file.write_text(STAGE2.split("  extra:")[0].replace("stage2_ab_training", "stage1_sft"))
    assert not load_config(file).decodes
    assert load_config(file, ["training.eval_on_start=true", f"{ROLLOUT}.max_new_tokens=9"]).decodes


def test_what_is_saved_loads_as_the_same_config(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["training.learning_rate=1e-4", "training.report_to=none"])
    saved = tmp_path / "deep" / "config.resolved.yaml"
    save_resolved(config, saved)
    again = load_config(saved)
    assert again == config
    assert again.digest == config.digest
    assert again.training.learning_rate == pytest.approx(1e-4)


def test_the_digest_changes_with_any_value(path: Path) -> None:
    assert load_config(path).digest != load_config(path, ["training.seed=43"]).digest


def test_all_parts_may_be_frozen_where_coordinate_rows_are_trained(path: Path) -> None:
    assert load_config(path, [*FROZEN, "tuner.coordinate_rows=true"]).tuner.coordinate_rows


def test_origins_name_file_line_and_command_line(path: Path) -> None:
    origins = load_with_origins(path, ["training.seed=1"]).origins
    assert origins["global_max_length"] == f"{path}:2"
    assert origins["training.seed"] == "command line"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("training.lerning_rate=1", "training.learning_rate"),
        ("learning_rate=1", "training.learning_rate"),
        (f"{ROLLOUT}.vllm.sync.transprt=file", f"{ROLLOUT}.vllm.sync.transport"),
        (f"{AB}.max_new_tokens=5", f"{ROLLOUT}.max_new_tokens"),
    ],
)
def test_an_unknown_key_is_told_with_its_path_and_the_nearest_known_one(path: Path, written: str, meant: str) -> None:
    said = refusal(path, [written])
    assert f"{written.partition('=')[0]}: unknown key; did you mean `{meant}`?" in said


def test_all_mistakes_are_told_at_once_with_their_origin(path: Path) -> None:
    path.write_text(STAGE2.replace("global_max_length: 1024", "global_max_length: 0") + "\nnonsense: 1\n")
    said = refusal(path, ["training.warmup_ratio=2", "training.packing=perhaps", "training.weight_decay=.nan"])
    assert "5 problems" in said
    assert f"global_max_length at {path}:2" in said
    for key in ("training.warmup_ratio", "training.packing", "training.weight_decay", "nonsense"):
        assert f"\n  {key}: " in said


def test_a_missing_key_is_named(path: Path) -> None:
    path.write_text(STAGE2.replace("train_jsonl: train.jsonl", ""))
    assert "custom.train_jsonl: is required and missing" in refusal(path, [])


FROZEN = ("tuner.freeze_llm=true", "tuner.freeze_vit=true", "tuner.freeze_aligner=true")
RULES = [
    ([f"{AB}.schedule.pattern=[]"], f"{AB}.schedule.pattern", "needs a list"),
    ([f"{AB}.schedule.pattern=[A,C]"], f"{AB}.schedule.pattern", "'C'"),
    ([f"{AB}.n_softctx_iter=0"], f"{AB}.n_softctx_iter", "0"),
    ([f"{ROLLOUT}.temperature=0.001"], f"{ROLLOUT}.temperature", "at least 0.01, got 0.001"),
    ([f"{AB}.softctx_temperature=0"], f"{AB}.softctx_temperature", "0"),
    ([f"{AB}.bbox_l1_weight=-1"], f"{AB}.bbox_l1_weight", "-1"),
    ([f"{ROLLOUT}.max_lag=-1"], f"{ROLLOUT}.max_lag", "-1"),
    (["training.packing=false"], "training.packing", "channel_b.mode"),
    (["training.dataloader_drop_last=false"], "training.dataloader_drop_last", "whole"),
    (["training.packing_drop_last=false"], "training.packing_drop_last", "true"),
    ([STAGE1, "training.dataloader_drop_last=false"], "training.dataloader_drop_last", "whole"),
    ([MICRO, "training.dataloader_drop_last=false"], "training.dataloader_drop_last", "whole"),
    ([f"{ROLLOUT}.post_rollout_pack_scope=step"], f"{ROLLOUT}.post_rollout_pack_scope", "'step'"),
    ([STAGE1, f"{ROLLOUT}.post_rollout_pack_scope=step"], f"{ROLLOUT}.post_rollout_pack_scope", "'step'"),
    ([MICRO, f"{ROLLOUT}.post_rollout_pack_scope=step"], f"{ROLLOUT}.post_rollout_pack_scope", "'step'"),
    (
        ["training.per_device_train_batch_size=4", f"{ROLLOUT}.rollout_generate_batch_size=6"],
        "training.per_device_train_batch_size",
        "got 4 and 6",
    ),
    ([f"{ROLLOUT}.vllm.tensor_parallel_size=2"], f"{ROLLOUT}.vllm.tensor_parallel_size", "got 2 (server_tp)"),
    (
        [f"{ROLLOUT}.rollout_backend=vllm", f"{ROLLOUT}.temperature=2.5"],
        f"{ROLLOUT}.temperature",
        "vllm takes at most 2, got 2.5",
    ),
    (["tuner.lora_rank=8"], "tuner.lora_rank", "got 8 with train_type full"),
    (["tuner.lora_alpha=8"], "tuner.lora_alpha", "got 8.0 with train_type full"),
    (["tuner.lora_dropout=0.1"], "tuner.lora_dropout", "got 0.1 with train_type full"),
    (["tuner.target_modules=[q_proj]"], "tuner.target_modules", "got ['q_proj'] with train_type full"),
    (["tuner.target_regex=.*"], "tuner.target_regex", "got .* with train_type full"),
    (["tuner.modules_to_save=[norm]"], "tuner.modules_to_save", "got ['norm'] with train_type full"),
    (
        ["training.effective_batch_size=10", "training.per_device_train_batch_size=4"],
        "training.effective_batch_size",
        "got 10 and 4 x 2",
    ),
    (
        ["training.effective_batch_size=8", "training.gradient_accumulation_steps=3"],
        "training.effective_batch_size",
        "got 8 and 1 x 3",
    ),
    (
        ["training.effective_batch_size=8", f"{ROLLOUT}.rollout_generate_batch_size=3"],
        "training.effective_batch_size",
        "got 8 and 3 x 2",
    ),
    (
        [f"{AB}.channel_b.mode=micro", "training.effective_batch_size=4", f"{AB}.channel_b.rollouts_per_step=6"],
        f"{AB}.channel_b.rollouts_per_step",
        "4 equal groups",
    ),
    ([f"{ROLLOUT}.vllm.mode=colocate"], f"{ROLLOUT}.vllm.mode", "use server"),
    (
        [f"{ROLLOUT}.vllm.mode=colocate", f"{AB}.channel_b.enable_pipeline=true"],
        f"{AB}.channel_b.enable_pipeline",
        "got colocate",
    ),
    ([f"{ROLLOUT}.deterministic=true", f"{ROLLOUT}.max_lag=1"], f"{ROLLOUT}.deterministic", "got 1"),
    (["training.optim=muon", "tuner.train_type=lora"], "training.optim", "got lora"),
    (["tuner.use_dora=true", "tuner.train_type=full"], "tuner.use_dora", "got full"),
    ([*FROZEN], "tuner.freeze_llm", "frozen"),
    ([*FROZEN, "tuner.coordinate_rows=true", "tuner.train_type=lora"], "tuner.freeze_llm", "frozen"),
    (
        ["training.lr_scheduler_type=warmup_stable_decay", "training.warmup_ratio=0.7"],
        "training.warmup_ratio",
        "0.7 + 0.4",
    ),
    (["training.report_to=[none,wandb]"], "training.report_to", "stands alone"),
    (["custom.val_jsonl=null", "training.eval_strategy=steps"], "custom.val_jsonl", "eval_strategy steps"),
    (["training.save_strategy=best"], "training.save_strategy", "best"),
    ([f"{ROLLOUT}.max_new_tokens=1024"], f"{ROLLOUT}.max_new_tokens", "1024 new tokens and 1024"),
    ([f"{ROLLOUT}.vllm.max_model_len=100"], f"{ROLLOUT}.max_new_tokens", "128 new tokens and 100"),
    (["template.min_pixels=9", "template.max_pixels=8"], "template.min_pixels", "got 9 and 8"),
    ([f"{ROLLOUT}.repeat_terminate.ngram_size=3"], f"{ROLLOUT}.repeat_terminate.ngram_size", "got 3 and 0"),
    ([f"{ROLLOUT}.repeat_terminate.enabled=true"], f"{ROLLOUT}.repeat_terminate.enabled", "without a limit"),
    (["tuner.train_type=lora", "tuner.target_regex=a(b"], "tuner.target_regex", "no regular expression"),
    (["tuner.target_regex=.*", "tuner.target_modules=[q_proj]"], "tuner.target_regex", "leave one of them out"),
    (["tuner.train_type=lora", "tuner.target_modules=[]"], "tuner.target_modules", "at least 1"),
    (
        ["training.metric_for_best_model=eval_rolout_f1"],
        "training.metric_for_best_model",
        "try eval_rollout_f1",
    ),
    ([f"{ROLLOUT}.decode_mode=beam"], f"{ROLLOUT}.decode_mode", "'greedy'"),
    ([f"{ROLLOUT}.vllm.enable_lora=true"], f"{ROLLOUT}.vllm.enable_lora", "merged"),
    (["training.metric_for_best_model=eval_rollout_fp"], "training.metric_for_best_model", "no score"),
]


@pytest.mark.parametrize(("overrides", "key", "said"), RULES, ids=lambda value: str(value)[-60:])
def test_a_broken_rule_names_its_key_and_values(path: Path, overrides: list[str], key: str, said: str) -> None:
    lines = [line for line in refusal(path, overrides).splitlines() if line.startswith(f"  {key}: ")]
    assert any(said in line for line in lines), lines


@pytest.mark.parametrize(
    "overrides",
    [
        ["tuner.train_type=lora", "tuner.lora_rank=8", "tuner.lora_alpha=8", "tuner.modules_to_save=[norm]"],
        ["tuner.lora_rank=16", "tuner.target_modules=all-linear"],
        ["training.per_device_train_batch_size=6", f"{ROLLOUT}.rollout_generate_batch_size=6"],
        [f"{ROLLOUT}.rollout_backend=vllm", f"{ROLLOUT}.temperature=2", f"{ROLLOUT}.vllm.tensor_parallel_size=2"],
        [f"{ROLLOUT}.temperature=3"],
    ],
    ids=" ".join,
)
def test_what_something_reads_is_taken(path: Path, tmp_path: Path, overrides: list[str]) -> None:
    config, resolved = load_config(path, overrides), tmp_path / "config.resolved.yaml"
    save_resolved(config, resolved)
    assert load_config(resolved) == config


def test_a_bare_no_is_the_word_and_not_false(path: Path) -> None:
    training = load_config(path, ["training.save_strategy=no", "training.eval_strategy=no"]).training
    assert (training.save_strategy, training.eval_strategy) == ("no", "no")


def test_more_than_one_learner_process_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in refusal(path, [])


def test_a_world_size_that_is_no_number_is_told_and_an_empty_one_is_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "x")
    assert "WORLD_SIZE in the environment is 'x'" in refusal(path, [])
    monkeypatch.setenv("WORLD_SIZE", "")
    assert load_config(path).global_max_length == 1024


def test_batch_sizes_are_derived_from_what_is_given(path: Path) -> None:
    def sizes(*overrides: str) -> tuple[int, int, int]:
        config: Config = load_config(path, overrides)
        return config.records_per_micro_step, config.gradient_accumulation_steps, config.effective_batch_size

    per_device = "training.per_device_train_batch_size=4"
    assert sizes(per_device, "training.effective_batch_size=12") == (4, 3, 12)
    assert sizes(per_device, "training.gradient_accumulation_steps=2") == (4, 2, 8)
    generate = f"{ROLLOUT}.rollout_generate_batch_size=6"
    assert sizes(generate, "training.effective_batch_size=12") == (6, 2, 12)
