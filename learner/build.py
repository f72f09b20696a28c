"""From a validated configuration to a run: each room opens its parts, here they are put together."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

from rich.console import Console

from learner.channels.channel import Sources
from learner.channels.reward_averages import RewardAverages
from learner.channels.table import open_channels
from learner.channels.target_maker import TargetMaker
from learner.checkpoints.checkpoint import Followed
from learner.checkpoints.opening import open_checkpoints
from learner.checkpoints.start import start_of
from learner.data.answer_weights import mean_answer_weight
from learner.data.opening import open_data
from learner.decoding.opening import open_decoding
from learner.evaluation.opening import open_evaluation
from learner.families.load import load_tokenizer
from learner.model.coordinate_rows import check_coordinate_rows
from learner.packing.packer import packer_of
from learner.plan.planner import Planner
from learner.plan.progress import Progress
from learner.reporting.collapse_guard import Guard
from learner.reporting.metrics_server import MetricsServer
from learner.reporting.opening import open_reporting
from learner.reporting.trackers import check_trackers
from learner.run import Run
from learner.servers.http import check_servers_are_named
from learner.training.opening import open_training
from shared.checkpoint_facts import checkpoint_folder
from shared.config.models import Config


@asynccontextmanager
async def open_run(config: Config, console: Console, folder: Path) -> AsyncIterator[Run]:
    """Open the parts of a run that logs into `folder`; leaving the block closes them in reverse order."""
    check_trackers(config.training)
    with closing(MetricsServer(config.training.metrics_port)) as metrics:  # a taken port is told before the rest loads
        console.print(f"metrics on {metrics.url}")
        async with AsyncExitStack() as stack:
            run = await _assemble(config, console, folder, metrics, stack)
            metrics.follow(run.progress)
            yield run


async def _assemble(
    config: Config, console: Console, folder: Path, metrics: MetricsServer, stack: AsyncExitStack
) -> Run:
    """Open room after room: first what costs seconds and may be wrong, then the model, then the servers."""
    start = start_of(config.model.model, config.tuner, config.training)
    model_folder = checkpoint_folder(start.model)
    data = open_data(config, model_folder, load_tokenizer(start.model), console)
    ids = data.vocabulary.coordinate_ids
    # Adapters that go on the model may have rows of their own.
    if start.adapters is None and (warning := check_coordinate_rows(model_folder, ids, config.tuner)):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if config.decodes:
        check_servers_are_named(config.rollout.vllm.server)
    targets = TargetMaker.of(config, data.vocabulary)
    answer_weight = start.answer_weight or mean_answer_weight(data.training, targets.answer_weight)
    planner = Planner.of(config, data.training.num_records, data.training.record_at, answer_weight)
    progress = Progress(planner.num_steps_of(config))
    training = stack.enter_context(
        open_training(
            config,
            start.model,
            start.adapters,
            num_steps=progress.num_steps,
            pad_token_id=data.tokenizer.pad_token_id,
            console=console,
        )
    )
    guard = Guard(config.stage2.guard, config.stage2.reward.annotation_recall)
    averages = RewardAverages(config.stage2.reward)
    followed = Followed(guard, averages, answer_weight)
    checkpoints = open_checkpoints(config, training, followed, progress, start.resumed, folder, data)
    reporting = stack.enter_context(open_reporting(config, folder, progress, guard, data.vocabulary, metrics, console))
    decoding = await stack.enter_async_context(
        open_decoding(config, data, planner, progress.num_steps, training, console)
    )
    return Run(
        planner=planner,
        progress=progress,
        sources=Sources(data.encoder, decoding.decoder),
        channels=open_channels(config, training.loaded, targets, averages),
        packer=packer_of(config),
        in_order=config.rollout.deterministic,
        averages=averages,
        training=training,
        decoding=decoding,
        evaluation=open_evaluation(config, data, planner, decoding, reporting.sinks, console, folder / "pictures"),
        checkpoints=checkpoints,
        reporting=reporting,
    )
