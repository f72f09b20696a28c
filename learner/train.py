"""The training loop."""

import anyio

from learner.plan.schedule import Channel
from learner.reporting.step_report import StepReport
from learner.run import Run
from learner.stages import ground_truth_targets, packed, rollout_targets


async def train(run: Run) -> None:
    """Train to the end of the plan. One turn of the loop is one optimizer step."""
    async with run.decoder.running():
        if run.evaluation.due_before_training(run.progress):
            await run.evaluate()
        async for step in run.steps():
            report = StepReport.opened(step, run.account)
            await run.decoder.open_next(step, report)  # this step's decoding, or that of a B step ahead
            match step.channel:
                case Channel.A:
                    objective = run.objectives.expectation
                    targets = ground_truth_targets(step, run.encoder, run.teacher, report)
                case Channel.B:
                    objective = run.objectives.rollout_matching
                    targets = rollout_targets(step, run.decoder, run.teacher, report)
            async with packed(step, targets, run.packer, run.learner.lay_out, run.in_order) as packs:
                async for pack in packs:  # decoding goes on while we learn
                    report.add_pack(await run.compute(run.learner.accumulate, pack, objective, step.totals))
            report.check_complete()
            with anyio.CancelScope(shield=True):  # a step that moves the weights is counted and logged
                update = await run.compute(run.learner.update)  # exactly one optimizer step
                run.progress.advance(step)
                record = report.closed(update, run.compute)
                run.sinks.write(record)
            await run.monitor.write(record)
            run.sinks.warn(run.guard.watch(record))
            if run.evaluation.due(run.progress):
                run.checkpoints.score(run.progress, await run.evaluate())
            if run.checkpoints.due(run.progress):
                await run.save()
