"""The training loop."""

from learner.plan.schedule import Channel
from learner.reporting.step_report import StepReport
from learner.run import Run
from learner.stages import fill_packs, ground_truth_targets
from shared.streams import prefetched


async def train(run: Run) -> None:
    """Train to the end of the plan. One turn of the loop is one optimizer step."""
    await run.evaluation.before_training(run.progress)
    async for step in run.steps():
        report = StepReport.opened(step)
        match step.channel:
            case Channel.A:
                objective, targets = run.objectives.expectation, ground_truth_targets(run.encoder, run.teacher, report)
            case Channel.B:
                published = await run.weights.publish_if_stale(step.step)
                report.add_time("time/sync_s", published.seconds)
                objective = run.objectives.rollout_matching
                targets = run.rollouts.targets(step, published.version, report)
        async with prefetched(fill_packs(step, targets, run.packer, run.in_order), depth=1) as packs:
            async for pack in packs:  # decoding goes on while we learn
                report.add_pack(await run.compute(run.learner.accumulate, pack, objective, step.totals))
        update = await run.compute(run.learner.update)  # exactly one optimizer step
        run.progress.advance(step)
        record = report.closed(update, run.compute)
        run.sinks.write(record)
        await run.monitor.write(record)
        run.sinks.warn(run.guard.watch(record))
        if run.evaluation.due(run.progress):
            run.checkpoints.score(run.progress, await run.evaluation.run(run.progress))
        if run.checkpoints.due(run.progress):
            await run.compute(run.checkpoints.save, run.progress)
