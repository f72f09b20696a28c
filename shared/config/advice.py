"""What a configuration may say and hardly ever means: the doctor's warnings. Broken rules are in checks.py."""

from collections.abc import Iterator

from shared.config.checks import ROLLOUT, STAGE2, Problem
from shared.config.migration import row_of
from shared.config.models import Config

FEW_IN_FLIGHT = 16


def advice_for(config: Config) -> list[Problem]:
    """Every warning; an empty list is a configuration that nothing is to be said about."""
    rules = (_decoding, _determinism, _weights, _stability, _coordinates)
    return [warning for rule in rules for warning in rule(config)]


def _decoding(config: Config) -> Iterator[Problem]:
    key, cap = f"{STAGE2}.channel_b.rollout_decode_batch_size", config.stage2.channel_b.rollout_decode_batch_size
    if config.decodes and cap is not None and cap < FEW_IN_FLIGHT:
        yield Problem(
            (key,),
            f"{cap} answers in flight leave most of a server idle; leave it null, or give at least {FEW_IN_FLIGHT} "
            f"({row_of(key)})",
        )
    for place, server in enumerate(config.rollout.vllm.server.servers):
        if server.group_port is not None:
            path = f"{ROLLOUT}.vllm.server.servers[{place}].group_port"
            yield Problem((path,), f"{server.group_port} is not used: {row_of(path)}")


def _determinism(config: Config) -> Iterator[Problem]:
    if config.rollout.deterministic and config.decodes and config.rollout.rollout_backend == "vllm":
        yield Problem(
            (f"{ROLLOUT}.deterministic", f"{ROLLOUT}.rollout_backend"),
            "true, but vllm's answers depend on what is decoded beside them; only hf on a CPU is bitwise repeatable",
        )


def _weights(config: Config) -> Iterator[Problem]:
    tuner, vllm = config.tuner, config.rollout.vllm
    if not config.decodes:
        return
    if tuner.train_type == "lora" and vllm.sync.mode == "full":
        yield Problem(
            (f"{ROLLOUT}.vllm.sync.mode", "tuner.train_type"),
            "full sends the whole model at every publish though only adapters change; auto sends what they touch",
        )
    if vllm.sync.mode == "adapter":
        kind = "DoRA" if tuner.use_dora else "an adapter"
        yield Problem(
            (f"{ROLLOUT}.vllm.sync.mode",),
            f"adapter means merged: no server holds {kind} of its own; set auto",
        )


def _stability(config: Config) -> Iterator[Problem]:
    stage2 = config.stage2
    b_only = not config.is_stage_1 and set(stage2.schedule.pattern) == {"B"}
    if b_only and stage2.prefix_structure_ce_weight == 0 and stage2.prefix_extras == "keep":
        yield Problem(
            (f"{STAGE2}.schedule.pattern", f"{STAGE2}.prefix_structure_ce_weight", f"{STAGE2}.prefix_extras"),
            "B steps alone with both knobs off make answers longer until nothing parses; mix in A, or set "
            "prefix_structure_ce_weight 1 and prefix_extras drop",
        )


def _coordinates(config: Config) -> Iterator[Problem]:
    tuner = config.tuner
    if config.is_stage_1 and tuner.train_type == "lora" and not (tuner.coordinate_rows or tuner.modules_to_save):
        yield Problem(
            ("tuner.coordinate_rows",),
            "false, so adapters learn around coordinate tokens that stay as they begin; set it to true",
        )
