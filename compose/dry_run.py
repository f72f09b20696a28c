"""What `boxloop up --dry-run` prints: the resolved configuration, what would be started, and the first steps."""

import os
import shlex
from collections.abc import Iterator, Mapping

from compose.environment import TOKEN_VARIABLE
from compose.launch_plan import LaunchPlan
from compose.process import ProcessSpec
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
    pattern = config.stage2.schedule.pattern or ("A",)
    if config.custom.trainer_variant == "stage1_sft":
        yield f"every step: {config.effective_batch_size} records, teacher-forced"
        return
    rollout, next_decode = config.rollout, 0
    for step in range(NUM_STEPS):
        if pattern[step % len(pattern)] == "A":
            passes = config.stage2.n_softctx_iter
            yield f"step {step}  A  {config.effective_batch_size} records, {passes} passes"
            continue
        version = max(next_decode, step - rollout.max_lag)
        next_decode = step + 1
        yield (
            f"step {step}  B  {config.rollouts_per_step} rollouts of the weights of step {version}, "
            f"at most {rollout.max_new_tokens} new tokens each"
        )
