"""The training loop."""

import anyio

from learner.reporting.step_report import StepReport
from learner.run import Run
from learner.stages import packed, samples_of


async def train(run: Run) -> None:
    """Train to the end of the plan. One turn of the loop is one optimizer step."""
    learner, lane, decoder, reporting = run.training.learner, run.training.lane, run.decoding.decoder, run.reporting
    async with decoder.running():
        if run.evaluation.due_before_training(run.progress):
            await run.evaluate()
        async for step in run.steps():
            kind, report = run.channels[step.channel], StepReport(step, run.decoding.account)
            report.add_time("time/sync_s", await decoder.open_next(step))  # this step's decoding, or that of one ahead
            samples = samples_of(step, kind, run.sources, report.add_taught)
            async with packed(step, samples, run.packer, learner.lay_out, run.in_order) as packs:
                async for pack in packs:  # decoding goes on while we learn
                    report.add_pack(await lane(learner.accumulate, pack, kind.objective, step.totals))
            report.check_complete()
            with anyio.CancelScope(shield=True):  # a step that moves the weights is counted and logged
                result = await lane(learner.update)  # exactly one optimizer step
                run.progress.advance(step)
                record = report.closed(result, lane)
                reporting.sinks.write(record)
            await reporting.monitor.write(record)
            reporting.sinks.warn(reporting.guard.watch(record))
            reporting.sinks.warn(run.averages.follow(record.tallies))
            if run.evaluation.due(run.progress):
                run.checkpoints.score(run.progress, await run.evaluate())
            if run.checkpoints.due(run.progress):
                await run.save()
