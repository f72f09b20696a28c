"""The servers of a run: who decodes, with which weights, and how far ahead."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from learner.data.opening import Data
from learner.decoding.ahead import Asked, Decoder, DecodingRules
from learner.decoding.pool import LARGEST_REQUEST, RolloutPool, window_of
from learner.decoding.replica import Restore
from learner.detection.vocabulary import CoordinateVocabulary
from learner.model.loaded import LoadedModel
from learner.plan.planner import Planner
from learner.plan.schedule import Channel
from learner.plan.time_split import RunAccount
from learner.servers.http import server_clients
from learner.servers.rollouts import RolloutServer, check_server, introduce
from learner.servers.weights import WeightChannel
from learner.training.opening import Training
from learner.weight_sync.publisher import Compute, Snapshots, WeightPublisher
from learner.weight_sync.snapshot import full_weights, merged_weights
from learner.weight_sync.table import OUTLETS
from shared.config.models import Config
from shared.config.rollout import RolloutMatchingSection, ServerSection
from shared.config.section import pick
from shared.families.facts import FamilyFacts
from shared.weight_wire import SyncMode
from shared.weights_root import weights_root
from shared.wire import Sampling, ServerInfo

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """The pool of servers, the weights they are sent, what decodes steps ahead of the loop, and how."""

    pool: RolloutPool
    weights: WeightPublisher
    decoder: Decoder
    sampling: Sampling
    account: RunAccount


@dataclass(frozen=True)
class MetServers:
    """Servers that have said what they are, and the ways to bring weights to them, in one order."""

    servers: Sequence[RolloutServer]
    infos: Sequence[ServerInfo]
    channels: Sequence[WeightChannel]


@asynccontextmanager
async def open_servers(section: ServerSection, folder: Path) -> AsyncIterator[MetServers]:
    """Meet the servers that the configuration names, which serve the checkpoint in `folder`.

    Raises ServerNeverReady for one that cannot be reached, ConfigError for one of another checkpoint.
    """
    async with server_clients(section) as clients:
        servers = [RolloutServer(client, section.stall_timeout_s, section.infer_timeout_s) for client in clients]
        infos = await introduce(servers, section.timeout_s)
        for server, info in zip(servers, infos, strict=True):
            check_server(info, server.name, folder)
        yield MetServers(servers, infos, [WeightChannel(client, section.timeout_s) for client in clients])


@asynccontextmanager
async def open_decoding(
    config: Config,
    data: Data,
    planner: Planner,
    num_steps: int,
    training: Training,
    console: Console,
) -> AsyncIterator[Decoding]:
    """Meet the servers of a run, none in one that decodes nothing. Raises as `open_servers`."""
    async with open_servers(config.rollout.vllm.server, training.loaded.folder) as met:
        with closing(publisher_of(config, met.channels, training.loaded, training.lane)) as weights:
            sampling = sampling_of(config.rollout, data.vocabulary, training.loaded.family.facts)
            pool = pool_of(config, met.servers, sampling, met.infos, weights.resend)
            run_account = RunAccount(training.account, [server.account for server in met.servers])
            rules = rules_of(config, num_steps, sampling)
            if config.decodes:
                console.print(rules.describe(config.pattern))
            decoder = Decoder(planner, data.encoder, pool, weights, run_account, rules)
            yield Decoding(pool, weights, decoder, sampling, run_account)


def sampling_of(rollout: RolloutMatchingSection, vocabulary: CoordinateVocabulary, facts: FamilyFacts) -> Sampling:
    """How servers decode; placeholders of images and videos can never be sampled."""
    placeholders = [vocabulary.tokenizer.token_to_id(text) for text in facts.placeholders]
    return pick(
        Sampling,
        rollout,
        stop_token_ids=tuple(sorted(vocabulary.stop_ids)),
        banned_token_ids=tuple(id for id in placeholders if id is not None),
        repeat_terminate=rollout.repeat_terminate.rule,
    )


def reward_asks(config: Config, sampling: Sampling) -> Asked:
    """What steps of Channel R ask for: samples of the model's own distribution, whatever B and evaluations use.

    Log-probabilities are wanted where the policy that decodes is not bit by bit the one that learns.
    """
    reward = config.stage2.reward
    plain = {"temperature": reward.temperature, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    differs = config.rollout.max_lag > 0 or config.rollout.rollout_backend != "hf"
    return Asked(sampling.model_copy(update=plain), reward.samples_per_record, return_logprobs=differs)


def rules_of(config: Config, num_steps: int, sampling: Sampling) -> DecodingRules:
    """How steps are decoded in a run of `num_steps` optimizer steps."""
    return DecodingRules(
        run_seed=config.training.seed,
        num_steps=num_steps,
        max_lag=config.rollout.max_lag,
        streaming=config.pipeline,
        in_order=config.rollout.deterministic,
        most_waiting=config.training.packing_buffer,
        asked={Channel.R: reward_asks(config, sampling)},
    )


def most_answers(config: Config) -> int:
    """Answers of the step that asks for most."""
    records, answers = config.records_per_step, config.answers_per_record
    return max(records[letter] * answers[letter] for letter in {"B", *config.pattern})


def pool_of(
    config: Config,
    servers: Sequence[RolloutServer],
    sampling: Sampling,
    infos: Sequence[ServerInfo],
    restore: Restore | None,
) -> RolloutPool:
    """The servers of the run, each asked for what `infos` say that it decodes at once.

    `restore` brings lost ones back, None takes them as they are. Repeatable runs send fixed batches, one at a time to
    each server.
    """
    rollout = config.rollout
    per_request, in_flight = rollout.rollout_infer_batch_size, config.stage2.channel_b.rollout_decode_batch_size
    if rollout.deterministic:
        per_request = in_flight = per_request or -(-most_answers(config) // max(1, len(servers)))
    return RolloutPool(
        servers,
        sampling,
        per_request or LARGEST_REQUEST,
        [min(info.limits.max_open_samples, in_flight or window_of(info.limits)) for info in infos],
        fixed_batches=rollout.deterministic,
        restore=restore,
        patience_s=rollout.vllm.server.timeout_s,
    )


def sync_mode_of(config: Config) -> SyncMode:
    """What servers are sent once they hold everything; auto = in adapter runs what training touches."""
    mode = config.rollout.vllm.sync.mode
    if mode == "adapter":
        LOG.warning("vllm.sync.mode: adapter means merged, because servers hold no adapters of their own")
    return "merged" if config.sends_merged else "full"


def publisher_of(
    config: Config, channels: Sequence[WeightChannel], loaded: LoadedModel, compute: Compute
) -> WeightPublisher:
    """What brings the weights of `loaded` to the servers behind `channels`."""
    sync = config.rollout.vllm.sync
    merged = partial(merged_weights, loaded) if sync_mode_of(config) == "merged" else None
    return WeightPublisher(
        channels,
        OUTLETS[sync.transport],
        weights_root(sync, config.training.output_dir),
        Snapshots(partial(full_weights, loaded), merged),
        compute,
        fallback_to_full=sync.fallback_to_full,
    )
