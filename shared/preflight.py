"""The frame of a preflight: a process that looks at what a part needs to start and prints a finding a line."""

import argparse
from collections.abc import Callable, Iterable, Sequence

from shared.config.load import load_config
from shared.config.models import Config
from shared.config.paths import user_path
from shared.errors import ConfigError
from shared.findings import Finding, failed, tell


def run_preflight(
    program: str, examine: Callable[[Config], Iterable[Finding]], description: str, arguments: Sequence[str]
) -> int:
    """Print every finding as a line of JSON; 0 unless the configuration cannot be read."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--config", type=user_path, required=True, help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the configuration")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
    except ConfigError as error:
        tell(failed("config", str(error)))
        return error.exit_code
    for finding in examine(config):
        tell(finding)
    return 0
