"""Each part is made as its section of the configuration says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from learner.channels.expectation import Expectation
from learner.channels.last_pass import SinglePass
from learner.channels.reward import PolicyGradient
from learner.channels.reward_averages import RewardAverages, RewardSums
from learner.channels.table import open_channels
from learner.channels.target_maker import TargetMaker
from learner.data.records import Reading, RecordSource
from learner.decoding.opening import pool_of, rules_of, sampling_of, sync_mode_of
from learner.detection.rewards import RewardRules
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_model, load_tokenizer
from learner.packing.packer import NoPacking, OnePack, Packer, packer_of
from learner.plan.planner import Planner
from learner.plan.schedule import Channel
from learner.servers.rollouts import RolloutServer
from shared.config.models import Config
from shared.families.qwen3_vl import QWEN3_VL
from shared.wire import PolicyVersion, RepeatTerminate

ConfigOf = Callable[..., Config]


@dataclass(frozen=True)
class Weighed:
    """Stands for a target, of which packing sees nothing but the length."""

    number: int
    num_tokens: int


MICRO = "custom.extra.stage2_ab.channel_b.mode=micro"
STAGE1 = "custom.trainer_variant=stage1_sft"
ROLLOUT = "custom.extra.rollout_matching"
AB = "custom.extra.stage2_ab"
SYNC_MODE = f"{ROLLOUT}.vllm.sync.mode"


@pytest.fixture
def vocabulary(checkpoint: Path) -> CoordinateVocabulary:
    return CoordinateVocabulary.from_tokenizer(load_tokenizer(str(checkpoint)))


def channels_of(config: Config) -> Any:
    """The kinds of step of a configuration, over its checkpoint."""
    vocabulary = CoordinateVocabulary.from_tokenizer(load_tokenizer(config.model.model))
    loaded = load_model(config.model.model, dtype="float32", device="cpu")
    return open_channels(config, loaded, TargetMaker.of(config, vocabulary), RewardAverages(config.stage2.reward))


def planner_of(config: Config, source: RecordSource) -> Planner:
    return Planner.of(config, source.num_records, source.record_at)


@pytest.fixture
def source(image: Callable[..., bytes], tmp_path: Path) -> RecordSource:
    """Ten records without objects."""
    (tmp_path / "image.png").write_bytes(image(0))
    line = orjson.dumps({"images": ["image.png"], "width": 64, "height": 64, "objects": []})
    (tmp_path / "data.jsonl").write_bytes(b"\n".join([line] * 10))
    return RecordSource.opened(tmp_path / "data.jsonl", Reading(), seed=0)[0]


def test_a_greedy_run_bans_placeholders_and_stops_where_the_tokenizer_does(
    config_of: ConfigOf, vocabulary: CoordinateVocabulary, checkpoint: Path
) -> None:
    sampling = sampling_of(config_of(f"{ROLLOUT}.max_new_tokens=33").rollout, vocabulary, QWEN3_VL)
    tokenizer = load_tokenizer(str(checkpoint))
    placeholders = set(tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"]))
    assert (sampling.max_new_tokens, sampling.temperature, sampling.repeat_terminate) == (33, 0.0, None)
    assert set(sampling.banned_token_ids) == placeholders
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in sampling.stop_token_ids


def test_every_sampling_key_reaches_the_wire(config_of: ConfigOf, vocabulary: CoordinateVocabulary) -> None:
    keys = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    repeat = {"min_new_tokens": 1, "max_consecutive_token_repeats": 2, "ngram_size": 3, "ngram_repeats": 4}
    overrides = [f"{ROLLOUT}.{key}={value}" for key, value in keys.items()]
    overrides += [f"{ROLLOUT}.repeat_terminate.{key}={value}" for key, value in repeat.items()]
    config = config_of(*overrides, f"{ROLLOUT}.repeat_terminate.enabled=true")
    sampling = sampling_of(config.rollout, vocabulary, QWEN3_VL)
    assert {key: getattr(sampling, key) for key in keys} == keys
    assert sampling.repeat_terminate == RepeatTerminate(**repeat)


def test_every_matching_key_reaches_the_matcher(config_of: ConfigOf) -> None:
    keys = {"candidate_top_k": 2, "maskiou_resolution": 64, "maskiou_gate": 0.4, "fp_cost": 0.5, "fn_cost": 0.6}
    config = config_of(*(f"{ROLLOUT}.{key}={value}" for key, value in keys.items()))
    matching = channels_of(config)[Channel.B].targets.matching
    assert {key: getattr(matching, key) for key in keys} == keys


def test_coordinates_are_words_in_stage_1_alone(config_of: ConfigOf) -> None:
    of_stage_2, of_stage_1 = channels_of(config_of()), channels_of(config_of(STAGE1))
    assert [kind.targets.weights.coord_ce_weight for kind in of_stage_2.values()] == [0, 0, 0]
    assert {channel: kind.targets.weights.coord_ce_weight for channel, kind in of_stage_1.items()} == {Channel.A: 1}


def test_targets_are_weighted_as_written(config_of: ConfigOf) -> None:
    keys = {"desc_ce_weight": 3.0, "prefix_structure_ce_weight": 0.5, "prefix_extras": "keep"}
    keys |= {"stop_ce_weight": 0.1, "supervise_iou": 0.75}
    config = config_of(*(f"custom.extra.stage2_ab.{key}={value}" for key, value in keys.items()))
    for kind in channels_of(config).values():
        assert {key: getattr(kind.targets.weights, key) for key in keys} == keys
        assert kind.targets.capacity == config.global_max_length


def test_every_loss_key_reaches_the_objectives(config_of: ConfigOf) -> None:
    terms = ("bbox_l1", "bbox_giou", "coord_gate", "coord_soft_ce", "coord_w1")
    weights = {name: 0.25 * place for place, name in enumerate(terms, 1)}
    stage2 = {f"{name}_weight": value for name, value in weights.items()}
    stage2 |= {"softctx_temperature": 0.5, "target_sigma": 3.0, "n_softctx_iter": 4}
    config = config_of(*(f"custom.extra.stage2_ab.{key}={value}" for key, value in stage2.items()))
    expectation, rollout_matching, reward = (kind.objective for kind in channels_of(config).values())
    assert isinstance(expectation, Expectation)
    assert isinstance(rollout_matching, SinglePass)
    assert expectation.num_passes == 4
    assert isinstance(reward, PolicyGradient)
    for objective in (expectation, rollout_matching, reward):
        assert objective.last_pass.section == config.stage2


def test_every_reward_key_reaches_the_steps_of_channel_r(config_of: ConfigOf) -> None:
    rules = {"iou_min": 0.6, "desc_share": 0.25, "invalid_cost": 0.1, "credit": "answer"}
    others = {"price": 0.11, "price_decay": 0.8, "importance_clip": 3.0, "anchor_ce_weight": 0.1}
    overrides = [f"{AB}.reward.{key}={value}" for key, value in {**rules, **others}.items()]
    config = config_of(*overrides, f"{AB}.reward.annotation_recall=0.5", "custom.object_ordering=random")
    kind = channels_of(config)[Channel.R]
    assert kind.rules == RewardRules(**rules, in_order=False)
    assert kind.averages.price == 0.11
    assert kind.averages.soft_f1_of(RewardSums(value=10, named=20, annotated=30)) == pytest.approx(10 / 40)
    assert kind.objective.anchor_ce_weight == 0.1
    assert kind.has_anchor
    assert kind.objective.last_pass.section.reward == config.stage2.reward


@pytest.mark.parametrize(("backend", "max_lag", "asked"), [("hf", 0, False), ("hf", 2, True), ("vllm", 0, True)])
def test_steps_of_rewards_sample_the_models_own_distribution(
    config_of: ConfigOf, vocabulary: CoordinateVocabulary, backend: str, max_lag: int, asked: bool
) -> None:
    keys = {"temperature": 0.3, "top_p": 0.5, "top_k": 7, "repetition_penalty": 1.2, "max_lag": max_lag}
    overrides = [f"{ROLLOUT}.{key}={value}" for key, value in keys.items()]
    reward = [f"{AB}.reward.samples_per_record=3", f"{AB}.schedule.pattern=[A,R]"]
    config = config_of(*overrides, *reward, f"{ROLLOUT}.rollout_backend={backend}")
    sampling = sampling_of(config.rollout, vocabulary, QWEN3_VL)
    rules = rules_of(config, 10, sampling)
    for_r = rules.asked[Channel.R]
    assert (for_r.num_samples, for_r.return_logprobs) == (3, asked)
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    assert for_r.sampling == sampling.model_copy(update=plain)
    assert Channel.B not in rules.asked
    warmer = config_of(f"{AB}.reward.temperature=0.5")
    of_warmer = rules_of(warmer, 10, sampling_of(warmer.rollout, vocabulary, QWEN3_VL)).asked[Channel.R].sampling
    assert of_warmer is not None
    assert of_warmer.temperature == 0.5
    assert channels_of(warmer)[Channel.R].objective.temperature == 0.5


def test_packs_are_filled_and_held_as_written(config_of: ConfigOf) -> None:
    def taken(*overrides: str) -> list[int]:
        """Fill in tokens of what may be learned after each of four targets of 100 tokens."""
        packer = packer_of(config_of("global_max_length=512", *overrides))
        fills = []
        for number in range(4):
            packer.add(Weighed(number, 100))
            pack = packer.take()
            fills.append(pack.num_tokens if pack else 0)
        return fills

    assert taken("training.packing_min_fill_ratio=0.7") == [0, 0, 0, 400]
    assert taken("training.packing_min_fill_ratio=0.3") == [0, 200, 0, 200]
    assert taken("training.packing_min_fill_ratio=0.7", "training.packing_buffer=1") == [0, 200, 0, 200]


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ((), Packer),
        ((MICRO,), OnePack),
        ((MICRO, "training.packing=false"), NoPacking),
        ((STAGE1, MICRO), Packer),
        ((STAGE1, "training.packing=false"), NoPacking),
    ],
)
def test_packing_follows_the_mode(config_of: ConfigOf, overrides: tuple[str, ...], kind: type) -> None:
    assert type(packer_of(config_of(*overrides))) is kind


def test_step_mode_takes_a_step_as_one_group(config_of: ConfigOf, source: RecordSource) -> None:
    config = config_of("custom.extra.stage2_ab.channel_b.rollouts_per_step=6")
    planner = planner_of(config, source)
    plans = [planner.plan(step, 0) for step in range(3)]
    assert [plan.channel for plan in plans] == [Channel.A, Channel.A, Channel.B]
    assert [[len(group) for group in plan.groups] for plan in plans] == [[4], [4], [6]]
    assert planner.num_steps(2) == 4  # 4 + 4 + 6 + 4 of 20 records: the next step would be short
    assert planner.num_steps(2.2) == 5


def test_micro_mode_takes_a_group_a_micro_step(config_of: ConfigOf, source: RecordSource) -> None:
    config = config_of(MICRO, "training.per_device_train_batch_size=2")
    plan = planner_of(config, source).plan(2, 0)
    assert [len(group) for group in plan.groups] == [2, 2]


def test_stage_1_knows_one_channel(config_of: ConfigOf, source: RecordSource) -> None:
    planner = planner_of(config_of(STAGE1), source)
    assert [planner.plan(step, 0).channel for step in range(3)] == [Channel.A] * 3


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        ((), 6),
        (("custom.extra.stage2_ab.channel_b.rollout_decode_batch_size=9",), 9),
        (("custom.extra.stage2_ab.channel_b.rollout_decode_batch_size=5000",), 1024),
        ((f"{ROLLOUT}.deterministic=true",), 4),
    ],
)
async def test_no_server_is_asked_for_more_than_it_takes(
    serving, scripted, config_of: ConfigOf, vocabulary: CoordinateVocabulary, overrides: tuple[str, ...], most: int
) -> None:
    async def restore(server: str) -> PolicyVersion:
        raise AssertionError(f"{server} was never lost")

    config = config_of(*overrides)
    with serving(scripted()) as running:
        async with running.client() as client:
            server = RolloutServer(client, 5.0)
            pool = pool_of(
                config, [server], sampling_of(config.rollout, vocabulary, QWEN3_VL), [await server.info()], restore
            )
    assert pool.windows == [most]


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        ([], "full"),
        (["tuner.train_type=lora"], "merged"),
        (["tuner.train_type=lora", f"{SYNC_MODE}=full"], "full"),
        ([f"{SYNC_MODE}=merged"], "merged"),
        (["tuner.train_type=lora", f"{SYNC_MODE}=adapter"], "merged"),
    ],
)
def test_adapter_runs_send_what_they_touch_unless_told_otherwise(
    config_of: ConfigOf, overrides: list[str], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert sync_mode_of(config_of(*overrides)) == mode
    assert ("adapter means merged" in caplog.text) == (f"{SYNC_MODE}=adapter" in overrides)
