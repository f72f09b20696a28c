"""`boxloop doctor`: every check by its name, pass or the reason and the cure, before anything is started.

configuration ─▶ advice · machine                     in this process, at once
             └─▶ learner.preflight · rollout_server.preflight     a process each, side by side
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

from rich.console import Console

from compose.environment import child_environment
from compose.launch_plan import Launch, LaunchPlan, Work, plan_launch
from compose.machine import this_machine
from compose.machine_checks import machine_findings
from compose.model_size import ModelSize, model_size
from compose.process import ChildProcess, ProcessSpec
from shared.access import TOKEN_VARIABLE
from shared.checkpoint_facts import find_model, holds_adapters
from shared.config.advice import advice_for
from shared.config.load import LoadedConfig, load_with_origins
from shared.config.models import Config
from shared.config.origins import DEFAULT, values_with_origins
from shared.errors import ConfigError
from shared.families.table import facts_in
from shared.findings import Finding, Status, attempt, checked, failed, warned
from shared.run_folder import check_writable

LEARNER, SERVER = "learner.preflight", "rollout_server.preflight"
STOP_GRACE_S = 2.0
STYLES: dict[Status, str] = {"pass": "green", "warn": "yellow", "fail": "red"}


def run_doctor(launch: Launch, console: Console, *, values: Literal["none", "written", "all"] = "none") -> int:
    """Print the verdict, then every finding, failures first; 1 if there is one, else 0.

    With `values` those of the configuration follow, each with where it was written.
    """
    loaded: list[LoadedConfig] = []
    with console.status("looking at configuration, data, model, machine and servers"):
        findings = list(diagnose(launch, loaded.append))
    counts = Counter(finding.status for finding in findings)
    console.print(f"{counts['pass']} passed, {counts['warn']} warnings, {counts['fail']} failed", style="bold")
    for status in ("fail", "warn", "pass"):
        for finding in findings:
            if finding.status == status:
                show(finding, console)
    if values != "none":
        for each in loaded:
            show_values(each, console=console, defaults=values == "all")
    return 1 if counts["fail"] else 0


def diagnose(launch: Launch, show_loaded: Callable[[LoadedConfig], None]) -> Iterator[Finding]:
    """All checks. Without a configuration that can be read there is nothing else to look at."""
    loaded, finding = attempt("config", partial(_loaded, launch))
    yield finding
    if loaded is None:
        return
    show_loaded(loaded)
    config = loaded.config
    if not config.rollout.vllm.server.servers:
        plan, finding = attempt("launch", partial(_planned, launch))
        yield finding
        config = plan.config if plan is not None else config
    yield from quick_findings(launch, config)
    modules = (LEARNER, SERVER) if config.decodes else (LEARNER,)
    with ThreadPoolExecutor(len(modules)) as side_by_side:
        for findings in side_by_side.map(partial(preflight, launch), modules):
            yield from findings


def quick_findings(launch: Launch, config: Config, *, learns: bool = True) -> Iterator[Finding]:
    """What costs no process: advice about the configuration, and whether the machine has room.

    Without `learns` no process but the servers holds the model.
    """
    for problem in advice_for(config):
        yield warned(problem.keys[0], problem.message)
    size, finding = attempt("model", partial(_sized, config))
    yield finding
    yield checked("output folder", partial(check_writable, config.training.output_dir))
    named = tuple(dict.fromkeys((*launch.server_gpus, *launch.train_gpus)))
    machine = this_machine(config.training.output_dir, os.environ, named)
    yield from machine_findings(config, launch, size, machine, learns=learns)


def check_launch(plan: LaunchPlan, work: Work, console: Console) -> None:
    """What is looked at before anything is started. Raises ConfigError when one of the quick checks fails."""
    stop_at_failures(quick_findings(plan.launch, plan.config, learns=work.learns), console)


def stop_at_failures(findings: Iterable[Finding], console: Console) -> None:
    """Show warnings; raise ConfigError that lists every failure."""
    told = [finding for finding in findings if finding.status != "pass"]
    for finding in told:
        if finding.status == "warn":
            show(finding, console)
    failures = [f"{finding.check}: {with_cure(finding)}" for finding in told if finding.status == "fail"]
    if failures:
        raise ConfigError("\n".join(failures))


def preflight(launch: Launch, module: str) -> list[Finding]:
    """Run one process's own checks to their end."""
    written = (override for override in launch.overrides if isinstance(override, str))  # all of a doctor's are
    argv = (sys.executable, "-m", module, "--config", str(launch.config), *written)
    token = os.environ.get(TOKEN_VARIABLE, "")
    environment = child_environment(
        os.environ, gpus=(), token=token, num_processes=2, disable_proxy=launch.disable_proxy
    )
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    return findings_of(module, done.returncode, done.stdout + done.stderr)


def findings_of(name: str, exit_code: int, output: str) -> list[Finding]:
    """Read what a preflight printed; that it died is a finding, too."""
    lines = output.splitlines()
    findings = [Finding.model_validate_json(line) for line in lines if line.startswith('{"check"')]
    if exit_code and not any(finding.status == "fail" for finding in findings):
        findings.append(failed(name, f"ended with code {exit_code}: {' / '.join(lines[-3:])}"))
    return findings


class EarlyPreflight:
    """The learner's checks, run while servers load their models: a bad record is told then, and not minutes later."""

    def __init__(self, plan: LaunchPlan, console: Console) -> None:
        self._console = console
        self._spec = ProcessSpec(
            name="preflight",
            argv=(sys.executable, "-m", LEARNER, "--config", str(plan.resolved)),
            environment=child_environment(os.environ, gpus=(), token="", num_processes=2, disable_proxy=True),
            log=plan.config.training.output_dir / "preflight.log",
        )
        self._spec.log.unlink(missing_ok=True)
        self._child = ChildProcess(self._spec)
        self._told = False

    def look(self) -> None:
        """Tell what was found once it has ended. Raises ConfigError for a failure."""
        code = self._child.exit_code
        if code is not None and not self._told:
            self._told = True
            stop_at_failures(findings_of(LEARNER, code, self._spec.log.read_text()), self._console)

    def stop(self) -> None:
        self._child.stop(STOP_GRACE_S)


def show_values(loaded: LoadedConfig, *, console: Console, defaults: bool) -> None:
    """Each value and where it was written."""
    for key, value, origin in values_with_origins(loaded):
        if defaults or origin != DEFAULT:
            console.print(f"  {key}: {value}  # {origin}", style="dim", highlight=False, markup=False, soft_wrap=True)


def show(finding: Finding, console: Console) -> None:
    """One finding as a line: what it is called, what was found, and what to do."""
    console.print(f"{finding.status:<5}", style=STYLES[finding.status], end="")
    console.print(f"{finding.check:<18} {with_cure(finding)}", highlight=False, markup=False, soft_wrap=True)


def with_cure(finding: Finding) -> str:
    return finding.reason + (f" → {finding.cure}" if finding.cure else "")


def _loaded(launch: Launch) -> tuple[LoadedConfig, str]:
    loaded = load_with_origins(launch.config, launch.overrides)
    return loaded, f"{launch.config}: {len(loaded.origins)} values set, no rule broken"


def _planned(launch: Launch) -> tuple[LaunchPlan, str]:
    """Whether GPUs divide into servers, and the ports are free."""
    plan = plan_launch(launch, Work())
    return plan, f"servers at {', '.join(server.base_url for server in plan.servers)}" if plan.servers else "no servers"


def _sized(config: Config) -> tuple[ModelSize | None, str]:
    name = config.model.model
    folder = find_model(name)
    if folder is None:
        return None, f"{name} is on the hub and is fetched at the start: its size is not known here"
    if not holds_adapters(folder):
        facts_in(folder)
    size = model_size(str(folder))
    if size is None:
        return None, f"the base of {name} is on the hub: its size is not known here"
    return size, f"{name}: {size.num_parameters / 1e6:,.1f} million parameters in {size.num_bytes / 1e6:,.1f} MB"
