"""Each part of a run from its own section of the configuration."""

import logging
from collections.abc import Sequence
from functools import partial

import torch

from learner.data.jsonl import RecordSource
from learner.decoding.ahead import DecodingRules
from learner.decoding.pool import LARGEST_REQUEST, RolloutPool, window_of
from learner.decoding.replica import Restore
from learner.detection.matching import MatchingConfig
from learner.detection.targets import TargetWeights
from learner.detection.vocabulary import CoordinateVocabulary
from learner.model.loaded import LoadedModel
from learner.objectives.expectation import Expectation
from learner.objectives.objective import LastPass
from learner.objectives.rollout_matching import RolloutMatching
from learner.objectives.supervised import Supervised
from learner.packing.pack_feed import GroupPacker
from learner.packing.packer import NoPacking, OnePack, Packer
from learner.plan.planner import Planner
from learner.plan.schedule import Channel
from learner.run import Objectives
from learner.servers.rollouts import RolloutServer
from learner.servers.weights import WeightChannel
from learner.teacher import Teacher
from learner.training.lane import ComputeLane
from learner.types import TrainingSample
from learner.weight_sync.publisher import Snapshots, WeightPublisher
from learner.weight_sync.snapshot import full_weights, merged_weights
from learner.weight_sync.transports import TRANSPORTS
from shared.config.models import Config
from shared.config.rollout import RolloutMatchingSection
from shared.weights_root import weights_root
from shared.wire import RepeatTerminate, Sampling, ServerInfo, SyncMode

LOG = logging.getLogger(__name__)

PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")


def is_stage1(config: Config) -> bool:
    return config.custom.trainer_variant == "stage1_sft"


def objectives_for(config: Config, loaded: LoadedModel, vocabulary: CoordinateVocabulary) -> Objectives:
    """The objective of each channel; Stage 1 has one channel, and it is plain teacher forcing."""
    stage2 = config.stage2
    last_pass = LastPass(stage2, torch.tensor(vocabulary.coordinate_ids, device=loaded.device))
    if is_stage1(config):
        return Objectives(Supervised(last_pass), Supervised(last_pass))
    return Objectives(Expectation(last_pass, stage2.n_softctx_iter), RolloutMatching(last_pass))


def teacher_for(config: Config, vocabulary: CoordinateVocabulary) -> Teacher:
    stage2 = config.stage2
    weights = TargetWeights(
        desc_ce_weight=stage2.desc_ce_weight,
        coord_ce_weight=1.0 if is_stage1(config) else 0.0,
        prefix_structure_ce_weight=stage2.prefix_structure_ce_weight,
        prefix_extras=stage2.prefix_extras,
    )
    return Teacher(vocabulary, matching_for(config.rollout), weights, config.global_max_length)


def matching_for(rollout: RolloutMatchingSection) -> MatchingConfig:
    return MatchingConfig(
        candidate_top_k=rollout.candidate_top_k,
        maskiou_resolution=rollout.maskiou_resolution,
        maskiou_gate=rollout.maskiou_gate,
        fp_cost=rollout.fp_cost,
        fn_cost=rollout.fn_cost,
    )


def sampling_for(rollout: RolloutMatchingSection, vocabulary: CoordinateVocabulary) -> Sampling:
    """How servers decode; placeholders of images and videos can never be sampled."""
    repeat = rollout.repeat_terminate
    placeholders = [vocabulary.tokenizer.token_to_id(text) for text in PLACEHOLDERS]
    return Sampling(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        repetition_penalty=rollout.repetition_penalty,
        stop_token_ids=tuple(sorted(vocabulary.stop_ids)),
        banned_token_ids=tuple(id for id in placeholders if id is not None),
        repeat_terminate=RepeatTerminate(**repeat.model_dump(exclude={"enabled"})) if repeat.enabled else None,
    )


def packer_for(config: Config) -> GroupPacker[TrainingSample]:
    training = config.training
    if not training.packing:
        return NoPacking(config.global_max_length, training.packing_buffer)
    if config.stage2.channel_b.mode == "micro" and not is_stage1(config):
        return OnePack(config.global_max_length)
    return Packer(config.global_max_length, training.packing_min_fill_ratio, training.packing_buffer)


def decoding_rules_for(config: Config, num_steps: int) -> DecodingRules:
    rollout = config.rollout
    return DecodingRules(
        run_seed=config.training.seed,
        num_steps=num_steps,
        max_lag=rollout.max_lag,
        streaming=config.pipeline,
        in_order=rollout.deterministic,
        most_waiting=config.training.packing_buffer,
    )


def planner_for(config: Config, source: RecordSource) -> Planner:
    steps = config.gradient_accumulation_steps
    by_group = config.stage2.channel_b.mode == "micro" and not is_stage1(config)
    groups = steps if by_group else 1
    return Planner(
        pattern=("A",) if is_stage1(config) else config.stage2.schedule.pattern,
        records_per_step={Channel.A: config.effective_batch_size, Channel.B: config.rollouts_per_step},
        groups_per_step={Channel.A: groups, Channel.B: groups},
        num_records=source.num_records,
        record_at=source.record_at,
    )


def pool_for(
    config: Config,
    servers: Sequence[RolloutServer],
    sampling: Sampling,
    infos: Sequence[ServerInfo],
    restore: Restore,
) -> RolloutPool:
    """The servers of the run, each asked for what `infos` say that it decodes at once; `restore` brings lost ones back.

    Repeatable runs send fixed batches, one at a time to each server.
    """
    rollout = config.rollout
    per_request, in_flight = rollout.rollout_infer_batch_size, config.stage2.channel_b.rollout_decode_batch_size
    if rollout.deterministic:
        per_request = in_flight = per_request or -(-config.rollouts_per_step // max(1, len(servers)))
    return RolloutPool(
        servers,
        sampling,
        per_request or LARGEST_REQUEST,
        [min(info.limits.max_open_samples, in_flight or window_of(info.limits)) for info in infos],
        fixed_batches=rollout.deterministic,
        restore=restore,
        patience_s=rollout.vllm.server.timeout_s,
    )


def sync_mode_for(config: Config) -> SyncMode:
    """What servers are sent once they hold everything; auto = in adapter runs what training touches."""
    mode = config.rollout.vllm.sync.mode
    if mode == "adapter":
        LOG.warning("vllm.sync.mode: adapter means merged, because servers hold no adapters of their own")
    return "merged" if config.sends_merged else "full"


def publisher_for(
    config: Config, channels: Sequence[WeightChannel], loaded: LoadedModel, lane: ComputeLane
) -> WeightPublisher:
    sync = config.rollout.vllm.sync
    merged = partial(merged_weights, loaded) if sync_mode_for(config) == "merged" else None
    return WeightPublisher(
        channels,
        TRANSPORTS[sync.transport],
        weights_root(config),
        Snapshots(partial(full_weights, loaded), merged),
        lane,
        fallback_to_full=sync.fallback_to_full,
    )
