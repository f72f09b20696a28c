"""What `boxloop up --dry-run` prints: the resolved configuration, what would be started, and the first steps."""

import os
import shlex
from collections.abc import Iterator, Mapping

from compose.launch_plan import LaunchPlan
from compose.process import ProcessSpec
from learner.plan.schedule import channel_of, decode_starts
from shared.access import TOKEN_VARIABLE
from shared.config.models import Config
from shared.config.origins import values_with_origins

NUM_STEPS = 9


def dry_run(plan: LaunchPlan) -> str:
    """The plan as text. Nothing is started or written, and the token is not shown."""
    origins = values_with_origins(plan.loaded)
    width = max(len(f"{key}: {value}") for key, value, _ in origins)
    lines = [f"# configuration, to be written to {plan.resolved}"]
    lines += [f"{f'{key}: {value}':<{min(width, 90)}}  # {origin}" for key, value, origin in origins]
    processes = [server.process for server in plan.servers] + ([plan.work] if plan.work else [])
    for process in processes:
        lines += ["", f"# {process.name}, output to {process.log}", *_command(process)]
    if plan.work is not None:
        lines += ["", "# first steps", *_schedule(plan.config)]
    return "\n".join(lines)


def _command(process: ProcessSpec) -> Iterator[str]:
    for name, value in sorted(_changes(os.environ, process.environment).items()):
        shown = "unset" if value is None else "a random token" if name == TOKEN_VARIABLE else shlex.quote(value)
        yield f"#   {name}={shown}"
    yield shlex.join(process.argv)


def _changes(inherited: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str | None]:
    """What differs from the environment of this process; None = taken out."""
    return {name: given.get(name) for name in inherited.keys() | given.keys() if inherited.get(name) != given.get(name)}


def _schedule(config: Config) -> Iterator[str]:
    if config.is_stage_1:
        yield f"every step: {config.effective_batch_size} records, teacher-forced"
        return
    versions = dict(decode_starts(config.pattern, config.rollout.max_lag, NUM_STEPS))
    for step in range(NUM_STEPS):
        letter = channel_of(step, config.pattern).value
        num_records = config.records_per_step[letter]
        if step in versions:
            yield (
                f"step {step}  {letter}  {num_records} rollouts of the weights of step {versions[step]}, "
                f"at most {config.rollout.max_new_tokens} new tokens each"
            )
        else:
            yield f"step {step}  {letter}  {num_records} records, {config.stage2.n_softctx_iter} passes"
