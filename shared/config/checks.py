"""Every rule that ties keys together. Rules of a single key stand with the key, in the models."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from shared.config.channels import DECODES
from shared.config.models import Config
from shared.config.section import Section
from shared.metrics import EVALUATION_SCORES

ROLLOUT = "custom.extra.rollout_matching"
STAGE2 = "custom.extra.stage2_ab"
ADAPTER_KEYS = ("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "target_regex", "modules_to_save")
VLLM_MAX_TEMPERATURE = 2.0
"""vLLM's own bound; a server would refuse every request above it."""


@dataclass(frozen=True)
class Problem:
    """One mistake: the keys it is about, the first of them leading, and what is wrong with the cure."""

    keys: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.keys[0]}: {self.message}"


def problems_of(config: Config, world_size: int = 1) -> list[Problem]:
    """All broken rules; an empty list is a configuration that can run."""
    rules = [
        _schedule, _reward, _batch, _step_mode, _pipeline, _optimizer, _tuner, _adapters, _evaluation, _lengths,
        _repeats, _engine, _unused,
    ]  # fmt: skip
    problems = [problem for rule in rules for problem in rule(config)]
    if world_size > 1:
        key = f"{ROLLOUT}.vllm.mode"
        problems.append(Problem((key,), f"server mode has one learner process, got WORLD_SIZE={world_size}; unset it"))
    return problems


def _schedule(config: Config) -> Iterator[Problem]:
    key, pattern = f"{STAGE2}.schedule.pattern", config.stage2.schedule.pattern
    if not config.is_stage_1 and not pattern:
        yield Problem((key,), f"stage2_ab_training needs a list of {', '.join(DECODES)}, such as [A, A, B]")
    wrong = sorted({entry for entry in pattern if entry not in DECODES})
    if wrong:
        yield Problem((key,), f"entries are {' or '.join(DECODES)}, got {wrong}")


def _reward(config: Config) -> Iterator[Problem]:
    """Keys that only steps of rewards look at."""
    reward, key, rollout = config.stage2.reward, f"{STAGE2}.reward.temperature", config.rollout
    if "R" not in config.stage2.schedule.pattern or reward.temperature == 1.0:
        return
    if reward.anchor_ce_weight:
        yield Problem(
            (key, f"{STAGE2}.reward.anchor_ce_weight"),
            f"an anchor is taught at temperature 1, got {reward.temperature:g}; leave one of them out",
        )
    if rollout.max_lag or rollout.rollout_backend != "hf":
        yield Problem(
            (key, f"{ROLLOUT}.max_lag", f"{ROLLOUT}.rollout_backend"),
            f"must be 1 where answers are weighted by what the server says of their likelihood, got "
            f"{reward.temperature:g} with max_lag {rollout.max_lag} and {rollout.rollout_backend}",
        )


def _batch(config: Config) -> Iterator[Problem]:
    training, micro, whole = config.training, config.records_per_micro_step, config.effective_batch_size
    generate_key = f"{ROLLOUT}.rollout_generate_batch_size"
    by_generate = config.rollout.rollout_generate_batch_size is not None and training.packing
    micro_key = generate_key if by_generate else "training.per_device_train_batch_size"
    steps = config.gradient_accumulation_steps
    if micro * steps != whole:
        yield Problem(
            ("training.effective_batch_size", micro_key, "training.gradient_accumulation_steps"),
            f"must be {micro_key} x gradient_accumulation_steps, got {whole} and {micro} x {steps}; "
            "leave one of them out or make them agree",
        )
    per_device = training.per_device_train_batch_size
    if by_generate and per_device not in (_default_of(training, "per_device_train_batch_size"), micro):
        yield Problem(
            ("training.per_device_train_batch_size", generate_key),
            f"both say how many records a micro-step has, got {per_device} and {micro}; leave one of them out",
        )
    if config.stage2.channel_b.mode == "micro" and config.rollouts_per_step % steps:
        yield Problem(
            (f"{STAGE2}.channel_b.rollouts_per_step", "training.gradient_accumulation_steps"),
            f"micro mode makes {steps} equal groups, which {config.rollouts_per_step} records do not divide into",
        )


def _step_mode(config: Config) -> Iterator[Problem]:
    if not config.training.packing_drop_last:
        yield Problem(("training.packing_drop_last",), "must be true, got false: nothing is left over at a step's end")
    if not config.training.dataloader_drop_last:
        yield Problem(("training.dataloader_drop_last",), "must be true, got false: every step is whole")
    scope = config.rollout.post_rollout_pack_scope
    if scope != "micro":
        yield Problem((f"{ROLLOUT}.post_rollout_pack_scope",), f"must be micro, got {scope!r}; leave it out")
    mode_key = f"{STAGE2}.channel_b.mode"
    if config.is_stage_1 or config.stage2.channel_b.mode != "step":
        return
    if not config.training.packing:
        yield Problem(
            ("training.packing", mode_key),
            "must be true when channel_b.mode is step, got false; a step's answers share packs",
        )


def _pipeline(config: Config) -> Iterator[Problem]:
    mode_key, mode = f"{ROLLOUT}.vllm.mode", config.rollout.vllm.mode
    if mode == "colocate":
        yield Problem((mode_key,), "colocate is not built; use server with server_gpus and train_gpus on the same GPU")
    if config.stage2.channel_b.enable_pipeline and mode != "server":
        key = f"{STAGE2}.channel_b.enable_pipeline"
        yield Problem((key, mode_key), f"true needs vllm.mode server, got {mode}; set the mode or false")
    if config.rollout.deterministic and config.rollout.max_lag:
        key = f"{ROLLOUT}.deterministic"
        yield Problem((key, f"{ROLLOUT}.max_lag"), f"true needs max_lag 0, got {config.rollout.max_lag}")


def _optimizer(config: Config) -> Iterator[Problem]:
    training = config.training
    if training.optim == "muon" and config.tuner.train_type != "full":
        kind = config.tuner.train_type
        yield Problem(("training.optim", "tuner.train_type"), f"muon needs train_type full, got {kind}; use adamw")
    warmup, decay = training.warmup_ratio, training.lr_decay_ratio
    if training.lr_scheduler_type == "warmup_stable_decay" and warmup + decay > 1:
        yield Problem(
            ("training.warmup_ratio", "training.lr_decay_ratio"), f"their sum must be at most 1, got {warmup} + {decay}"
        )
    if "none" in training.report_to and len(training.report_to) > 1:
        yield Problem(("training.report_to",), f"none stands alone, got {list(training.report_to)}")


def _tuner(config: Config) -> Iterator[Problem]:
    tuner = config.tuner
    if tuner.use_dora and tuner.train_type != "lora":
        yield Problem(("tuner.use_dora", "tuner.train_type"), f"true needs train_type lora, got {tuner.train_type}")
    rows_alone = tuner.coordinate_rows and tuner.train_type == "full"
    if tuner.freeze_llm and tuner.freeze_vit and tuner.freeze_aligner and not rows_alone:
        yield Problem(
            ("tuner.freeze_llm", "tuner.freeze_vit", "tuner.freeze_aligner"), "all parts are frozen; free at least one"
        )
    if tuner.target_regex is not None and tuner.target_modules != ("all-linear",):
        yield Problem(
            ("tuner.target_regex", "tuner.target_modules"),
            f"says itself which modules get an adapter, got target_modules {list(tuner.target_modules)} beside it; "
            "leave one of them out",
        )


def _adapters(config: Config) -> Iterator[Problem]:
    """Keys of adapters where none are trained; what stands at its default is not meant."""
    tuner = config.tuner
    for name in ADAPTER_KEYS if tuner.train_type == "full" else ():
        value = getattr(tuner, name)
        if value != _default_of(tuner, name):
            shown = list(value) if isinstance(value, tuple) else value
            yield Problem(
                (f"tuner.{name}", "tuner.train_type"), f"is about adapters, got {shown} with train_type full; set lora"
            )


def _evaluation(config: Config) -> Iterator[Problem]:
    training = config.training
    evaluates = training.eval_strategy != "no" or training.eval_on_start
    if evaluates and config.custom.val_jsonl is None:
        yield Problem(
            ("custom.val_jsonl", "training.eval_strategy", "training.eval_on_start"),
            f"evaluation needs it (eval_strategy {training.eval_strategy}, eval_on_start {training.eval_on_start}); "
            "set it to a JSONL file",
        )
    name, scores = training.metric_for_best_model, [metric.name for metric in EVALUATION_SCORES]
    if name not in scores:
        near = get_close_matches(name, scores, n=1, cutoff=0.0)[0]
        yield Problem(
            ("training.metric_for_best_model",), f"{name} is no score of an evaluation (docs/metrics.md); try {near}"
        )
    if training.save_strategy == "best" and training.eval_strategy == "no":
        yield Problem(("training.save_strategy", "training.eval_strategy"), "best needs an eval_strategy other than no")


def _lengths(config: Config) -> Iterator[Problem]:
    answer_key, answer = f"{ROLLOUT}.max_new_tokens", config.rollout.max_new_tokens
    model_len_key = f"{ROLLOUT}.vllm.max_model_len"
    limits = {"global_max_length": config.global_max_length, model_len_key: config.rollout.vllm.max_model_len}
    for key, limit in limits.items():
        if config.decodes and limit is not None and answer >= limit:
            yield Problem(
                (answer_key, key), f"prompt and answer must fit into {key}, got {answer} new tokens and {limit} in all"
            )
    smallest, largest = config.template.min_pixels, config.template.max_pixels
    if smallest is not None and largest is not None and smallest > largest:
        yield Problem(
            ("template.min_pixels", "template.max_pixels"), f"min must be at most max, got {smallest} and {largest}"
        )


def _repeats(config: Config) -> Iterator[Problem]:
    repeat, key = config.rollout.repeat_terminate, f"{ROLLOUT}.repeat_terminate"
    if (repeat.ngram_size > 0) != (repeat.ngram_repeats > 0):
        yield Problem(
            (f"{key}.ngram_size", f"{key}.ngram_repeats"),
            f"set both or neither, got {repeat.ngram_size} and {repeat.ngram_repeats}",
        )
    limits = (repeat.max_consecutive_token_repeats, repeat.ngram_repeats, repeat.max_object_keys)
    if repeat.enabled and not any(limits):
        yield Problem((f"{key}.enabled",), "true without a limit; set max_consecutive_token_repeats, ngram_* or keys")


def _engine(config: Config) -> Iterator[Problem]:
    rollout = config.rollout
    backend_key, ranks = f"{ROLLOUT}.rollout_backend", rollout.vllm.tensor_parallel_size
    if rollout.rollout_backend == "hf" and ranks > 1:
        yield Problem(
            (f"{ROLLOUT}.vllm.tensor_parallel_size", backend_key),
            f"a server of hf uses one GPU, got {ranks} (server_tp); leave it at 1, or set rollout_backend vllm",
        )
    if rollout.rollout_backend == "vllm" and rollout.temperature > VLLM_MAX_TEMPERATURE:
        yield Problem(
            (f"{ROLLOUT}.temperature", backend_key),
            f"vllm takes at most {VLLM_MAX_TEMPERATURE:g}, got {rollout.temperature:g}; lower it",
        )


def _default_of(section: Section, name: str) -> object:
    return type(section).model_fields[name].default


def _unused(config: Config) -> Iterator[Problem]:
    """A way to send weights that is not gone: a value that nothing would read is refused."""
    vllm = config.rollout.vllm
    if vllm.enable_lora:
        yield Problem((f"{ROLLOUT}.vllm.enable_lora",), "adapters reach servers merged, got true; leave it out")
