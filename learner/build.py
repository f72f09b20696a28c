"""From a validated configuration to a run: reads the data, loads the model and wires the parts."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from learner.checkpoints.checkpoint import Checkpoints, set_aside_later
from learner.checkpoints.start import start_of
from learner.data.encoding import Encoder
from learner.data.images import ImageReader
from learner.data.jsonl import Reading, RecordSource
from learner.data.lengths import check_validation_prompts, without_long_records
from learner.decoding.ahead import Decoder
from learner.detection.record import Record
from learner.detection.vocabulary import CoordinateVocabulary
from learner.evaluation.evaluate import Evaluation, EvaluationPlan
from learner.evaluation.scoring import check_best_metric
from learner.model.load import load_model, load_tokenizer
from learner.parts import (
    decoding_rules_for,
    objectives_for,
    packer_for,
    planner_for,
    pool_for,
    publisher_for,
    sampling_for,
    teacher_for,
)
from learner.plan.planner import Planner
from learner.plan.progress import Progress
from learner.plan.time_split import LearnerActivity, RunAccount
from learner.reporting.collapse_guard import Guard
from learner.reporting.metrics_server import MetricsServer
from learner.reporting.monitor import Monitor
from learner.reporting.sinks import Sinks
from learner.reporting.trackers import check_trackers, trackers_for
from learner.run import Run
from learner.servers.http import check_servers_are_named, server_clients
from learner.servers.rollouts import RolloutServer, check_server, introduce
from learner.servers.weights import WeightChannel
from learner.training.lane import ComputeLane
from learner.training.learner import Learner
from learner.training.optim import StepOptimizer
from shared.accounting import TimeAccount
from shared.config.models import Config

NUM_EVAL_PICTURES = 8


@asynccontextmanager
async def open_run(config: Config, console: Console, folder: Path) -> AsyncIterator[Run]:
    """Wire the parts of a run that logs into `folder`; leaving the block closes them in reverse order."""
    check_trackers(config)
    check_best_metric(config)
    with closing(MetricsServer(config.training.metrics_port)) as metrics:  # a taken port is told before the rest loads
        console.print(f"metrics on {metrics.url}")
        async with _wired(config, console, folder, metrics) as run:
            metrics.follow(run.progress)
            yield run


@asynccontextmanager
async def _wired(config: Config, console: Console, folder: Path, metrics: MetricsServer) -> AsyncIterator[Run]:
    training = config.training
    start = start_of(config)
    tokenizer = load_tokenizer(start.model)
    vocabulary = CoordinateVocabulary.from_tokenizer(tokenizer)
    encoder = encoder_for(config, start.model, tokenizer)
    source = training_source(config, vocabulary, encoder, console)
    validation = validation_records(config, vocabulary)
    check_validation_prompts(validation, encoder, config)
    check_servers_are_named(config)
    planner = planner_for(config, source)
    progress = Progress(training.max_steps if training.max_steps > 0 else planner.num_steps(training.num_train_epochs))
    with console.status(f"loading {start.model}"):
        loaded = load_model(
            start.model,
            dtype=config.model.dtype,
            attn_impl=config.model.attn_impl,
            tuner=config.tuner,
            seed=training.seed,
            adapters=start.adapters,
        )
    if training.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = StepOptimizer(loaded.model, training, progress.num_steps)
    guard = Guard(config.stage2.guard)
    checkpoints = Checkpoints(loaded, optimizer, guard, training, config.digest)
    if start.resumed is not None:
        state = checkpoints.restore(start.resumed)
        progress.step, progress.cursor, progress.epoch = state.global_step, state.cursor, state.epoch
        progress.saved_step = state.global_step
    set_aside_later(folder, progress.step, in_use=Path(config.model.model))
    teacher, sampling = teacher_for(config, vocabulary), sampling_for(config.rollout, vocabulary)
    async with AsyncExitStack() as stack:
        learner_account = TimeAccount(LearnerActivity)
        lane = stack.enter_context(ComputeLane(learner_account))
        sinks = stack.enter_context(
            Sinks(
                folder,
                console,
                progress,
                training.logging_steps,
                log_first=training.logging_first_step,
                trackers=(metrics, *trackers_for(config, folder, progress.step)),
            )
        )
        clients = await stack.enter_async_context(server_clients(config.rollout.vllm.server))
        section = config.rollout.vllm.server
        servers = [RolloutServer(client, section.stall_timeout_s, section.infer_timeout_s) for client in clients]
        infos = await introduce(servers, section.timeout_s)
        for server, info in zip(servers, infos, strict=True):
            check_server(info, server.name, loaded.folder)
        channels = [WeightChannel(client, section.timeout_s) for client in clients]
        weights = stack.enter_context(closing(publisher_for(config, channels, loaded, lane)))
        pool = pool_for(config, servers, sampling, infos, weights.resend)
        account = RunAccount(learner_account, [server.account for server in servers])
        rules = decoding_rules_for(config, progress.num_steps)
        if config.decodes:
            console.print(rules.told(config.stage2.schedule.pattern))
        yield Run(
            planner=planner,
            progress=progress,
            encoder=encoder,
            teacher=teacher,
            decoder=Decoder(planner, encoder, pool, weights, account, rules),
            account=account,
            packer=packer_for(config),
            in_order=rules.in_order,
            compute=lane,
            learner=Learner(
                loaded, optimizer, pad_token_id=tokenizer.pad_token_id, max_grad_norm=training.max_grad_norm
            ),
            objectives=objectives_for(config, loaded, vocabulary),
            evaluation=Evaluation(
                evaluation_plan(config, planner, validation, folder / "pictures"),
                encoder,
                teacher,
                pool,
                sampling,
                weights,
                account,
                sinks,
                console,
            ),
            checkpoints=checkpoints,
            sinks=sinks,
            monitor=Monitor(config.rollout.monitor_dump, folder / "pictures", vocabulary, progress.step),
            guard=guard,
        )


def encoder_for(config: Config, model: str, tokenizer: Any) -> Encoder:
    """What makes prompts of records, by the tokenizer and the image processor of a checkpoint."""
    return Encoder(
        tokenizer,
        ImageReader.from_checkpoint(model, config.template.max_pixels, config.template.min_pixels),
        system=config.template.system,
        user_prompt=config.custom.user_prompt,
        num_workers=config.training.dataloader_num_workers,
    )


def training_source(
    config: Config, vocabulary: CoordinateVocabulary, encoder: Encoder, console: Console
) -> RecordSource:
    """The training records that can be learned; says what was skipped or changed on the way."""
    custom = config.custom
    with console.status(f"reading {custom.train_jsonl}"):
        source, report = RecordSource.opened(
            custom.train_jsonl,
            reading_for(config, vocabulary, "error"),
            seed=config.training.seed,
            limit=custom.train_sample_limit,
        )
        fitting = without_long_records(source, encoder, vocabulary, config)
    console.print(
        f"{custom.train_jsonl}: {fitting.num_records} records, {len(report.skipped)} skipped, "
        f"{source.num_records - fitting.num_records} too long, {report.widened} boxes widened, "
        f"{report.clamped} values clamped"
    )
    return fitting


def reading_for(config: Config, vocabulary: CoordinateVocabulary, polygons: Literal["error", "keep"]) -> Reading:
    """How the configuration means its JSONL files; `polygons` is what becomes of those that stay polygons."""
    custom = config.custom
    return Reading(
        coordinate_space=custom.coordinate_space,
        on_bad_record=custom.on_bad_record,
        polygons="as_bbox" if custom.poly_as_bbox else polygons,
        object_ordering=custom.object_ordering,
        special_texts=vocabulary.special_texts,
    )


def evaluation_plan(config: Config, planner: Planner, records: tuple[Record, ...], pictures: Path) -> EvaluationPlan:
    """When `records` are evaluated."""
    training = config.training
    every = {
        "no": None,
        "steps": training.eval_steps or training.logging_steps,
        "epoch": max(1, planner.num_steps(1)),
    }[training.eval_strategy]
    return EvaluationPlan(
        records=records,
        every=every,
        at_start=training.eval_on_start,
        num_pictures=NUM_EVAL_PICTURES,
        pictures=pictures,
    )


def validation_records(config: Config, vocabulary: CoordinateVocabulary) -> tuple[Record, ...]:
    """The validation records in file order; polygons stay polygons."""
    if config.custom.val_jsonl is None:
        return ()
    reading = reading_for(config, vocabulary, "keep")
    source, _ = RecordSource.opened(config.custom.val_jsonl, reading, seed=None, limit=config.custom.val_sample_limit)
    return tuple(source.in_file_order())
