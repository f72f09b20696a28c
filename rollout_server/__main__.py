"""Starts one rollout server: `python -m rollout_server --config FILE [key=value …]`."""

import argparse
import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rollout_server.engines.table import ENGINES
from rollout_server.launch import serve, settings_from
from shared.access import LAST_PORT
from shared.companions import tolerate_cuda_builds
from shared.config.load import load_config
from shared.config.paths import user_path
from shared.console import settle_streams
from shared.errors import BoxloopError
from shared.lifeline import end_with_parent
from shared.listening import bound_socket


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal ends the process; returns the exit code of a start that failed."""
    end_with_parent()
    settle_streams()
    tolerate_cuda_builds()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    options = _parser().parse_args(arguments)
    try:
        settings = settings_from(load_config(options.config, options.overrides), options)
        with bound_socket(settings.host, settings.port) as listener:
            print(f"listening on {settings.host}:{listener.getsockname()[1]}", flush=True)
            asyncio.run(serve(settings, listener))
    except BoxloopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rollout_server", description="Decode rollouts for a learner.")
    parser.add_argument("--config", type=user_path, required=True, help="the run's YAML file")
    parser.add_argument("--host", help="address to bind (vllm.server.host)")
    parser.add_argument("--port", type=_port, default=8000, help="0 = any free one")
    parser.add_argument("--model", help="checkpoint directory or hub id (model.model)")
    parser.add_argument("--engine", choices=list(ENGINES), help="decoding engine (rollout_backend)")
    parser.add_argument("--script", type=Path, help="the scripted engine's JSON file")
    parser.add_argument("--token-file", type=Path, help="file with the token (vllm.server.token_file)")
    parser.add_argument("--image-root", type=Path, help="folder that image paths lie under (vllm.server.image_root)")
    parser.add_argument("--weights-root", type=Path, help="folder of the file transport (vllm.sync.weights_root)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the configuration")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 to {LAST_PORT}")
    return int(text)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception:
        traceback.print_exc()  # the exit below leaves the interpreter no time to say it
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # A model that is still loading cannot be interrupted, and an ordinary exit would wait for it.
        os._exit(code)
