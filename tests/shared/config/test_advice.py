"""What is allowed and hardly ever meant is said, with the key and the cure; what is meant is left alone."""

from pathlib import Path

import pytest

from shared.config.advice import advice_for
from shared.config.load import load_config

ROOT = Path(__file__).parents[3]
MIXED = ROOT / "configs" / "stage2_ab" / "prod" / "ab_mixed.yaml"
AB, ROLLOUT = "custom.extra.stage2_ab", "custom.extra.rollout_matching"
KNOBS = (f"{AB}.prefix_structure_ce_weight=0", f"{AB}.prefix_extras=keep")
STAGE1 = "custom.trainer_variant=stage1_sft"

ADVICE = [
    ([f"{AB}.channel_b.rollout_decode_batch_size=15"], f"{AB}.channel_b.rollout_decode_batch_size", "15 answers"),
    ([f"{ROLLOUT}.deterministic=true"], f"{ROLLOUT}.deterministic", "only hf on a CPU"),
    (["tuner.train_type=lora", f"{ROLLOUT}.vllm.sync.mode=full"], f"{ROLLOUT}.vllm.sync.mode", "auto sends"),
    (
        ["tuner.train_type=lora", "tuner.use_dora=true", f"{ROLLOUT}.vllm.sync.mode=adapter"],
        f"{ROLLOUT}.vllm.sync.mode",
        "DoRA",
    ),
    ([f"{AB}.schedule.pattern=[B]", *KNOBS], f"{AB}.schedule.pattern", "mix in A"),
    ([STAGE1, "tuner.train_type=lora"], "tuner.coordinate_rows", "set it to true"),
]
QUIET = [
    [],
    [f"{AB}.channel_b.rollout_decode_batch_size=16"],
    [f"{ROLLOUT}.deterministic=true", f"{ROLLOUT}.rollout_backend=hf"],
    ["tuner.train_type=lora"],
    [STAGE1],
    [STAGE1, "tuner.train_type=lora", "tuner.coordinate_rows=true"],
    [STAGE1, "tuner.train_type=lora", "tuner.modules_to_save=[embed_tokens]"],
    ["tuner.train_type=lora", "tuner.use_dora=true"],
    [f"{ROLLOUT}.vllm.sync.mode=full"],
    [f"{AB}.schedule.pattern=[A,B]", *KNOBS],
    [f"{AB}.schedule.pattern=[B]", f"{AB}.prefix_structure_ce_weight=1", f"{AB}.prefix_extras=drop"],
]


@pytest.mark.parametrize(("overrides", "key", "said"), ADVICE, ids=lambda value: str(value)[-50:])
def test_advice_names_its_key_and_the_cure(overrides: list[str], key: str, said: str) -> None:
    (problem,) = advice_for(load_config(MIXED, overrides))
    assert problem.keys[0] == key
    assert said in problem.message


@pytest.mark.parametrize("overrides", QUIET, ids=lambda value: str(value)[-50:])
def test_what_makes_sense_is_left_alone(overrides: list[str]) -> None:
    assert advice_for(load_config(MIXED, overrides)) == []


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: str(path)[-40:])
def test_nothing_is_to_be_said_about_what_ships(config: Path) -> None:
    if config.name != "base.yaml":
        assert advice_for(load_config(config)) == []
