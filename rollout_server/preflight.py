"""The doctor's half of a rollout server: `python -m rollout_server.preflight --config FILE [key=value …]`.

Looks at what a server needs to start, without loading a model, and prints a finding a line.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rollout_server.engines.prompt_rules import read_rules
from rollout_server.engines.vllm.environment import check_version
from rollout_server.settings import limits_for
from shared.access import TOKEN_VARIABLE, check_token, read_token
from shared.checkpoint_facts import base_model, num_positions
from shared.config.models import Config
from shared.errors import ConfigError
from shared.findings import Finding, checked, failed, passed, warned
from shared.preflight import run_preflight
from shared.weights_root import weights_root


def examine(config: Config) -> Iterator[Finding]:
    """All checks of one server."""
    yield checked("engine", partial(engine, config))
    model = Path(base_model(config.model.model))
    if model.is_dir():
        yield checked("server model", partial(served_model, config, model))
    else:
        yield warned("server model", f"{model} is no folder on this disk", "a hub id is fetched when the server starts")
    yield checked("token", partial(token, config))
    yield weights_folder(config)
    if (root := config.rollout.vllm.server.image_root) is not None:
        found = root.is_dir()
        yield passed("images", f"read from {root}") if found else failed("images", f"image_root {root} is no folder")


def engine(config: Config) -> str:
    """Whether the engine of `rollout_backend` is installed, in a version that it was built for."""
    if config.rollout.rollout_backend == "vllm":
        return f"vllm {check_version()}"
    return f"hf, transformers {version('transformers')}"


def served_model(config: Config, model: Path) -> str:
    """Whether the checkpoint is of a known family, with positions for the longest prompt and answer."""
    length = config.max_model_len
    read_rules(str(model), limits_for(length, config.rollout.vllm.max_num_seqs))
    positions = num_positions(model)
    if positions is not None and length > positions:
        raise ConfigError(
            f"vllm.max_model_len (or global_max_length) is {length}, but {model} has {positions} positions; lower it"
        )
    return f"{model}, {length} of {positions or 'its'} positions"


def token(config: Config) -> str:
    """Whether the token is there, and long enough for the address that a server binds."""
    section = config.rollout.vllm.server
    found = read_token(section.token_file)
    check_token(found, section.host)
    if section.token_file is not None:
        return f"of {section.token_file}"
    return f"of {TOKEN_VARIABLE}" if found else f"none, which a server on {section.host} may do without; `up` makes one"


def weights_folder(config: Config) -> Finding:
    """Whether the folder that weights pass through is there, or can be made."""
    root = weights_root(config.rollout.vllm.sync, config.training.output_dir)
    above = next(path for path in (root.resolve(), *root.resolve().parents) if path.exists())
    if above.is_dir() and os.access(above, os.W_OK):
        return passed("weights folder", str(root))
    return failed("weights folder", f"{root} cannot be made: {above} is not writable", "set vllm.sync.weights_root")


if __name__ == "__main__":
    sys.exit(run_preflight("rollout_server.preflight", examine, "Check what a server needs.", sys.argv[1:]))
