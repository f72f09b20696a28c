"""Predicts on running servers: `python -m learner.prediction --config FILE --source PATH --out DIR [key=value …]`."""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from shared.companions import tolerate_cuda_builds
from shared.config.load import load_config
from shared.config.models import Config
from shared.config.paths import user_path
from shared.console import settle_streams
from shared.errors import BoxloopError
from shared.lifeline import end_with_parent


def main(arguments: Sequence[str]) -> int:
    """0; 1 when a picture failed, or the run did; 2 for what cannot be used; 128 + N after a signal."""
    end_with_parent()
    settle_streams()
    tolerate_cuda_builds()
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    try:
        config = load_config(options.config, options.overrides)
        return asyncio.run(_until_signalled(config, options, console))
    except (BoxloopError, OSError) as error:  # OSError: a disk that is full or gone
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False, soft_wrap=True)
        return error.exit_code if isinstance(error, BoxloopError) else BoxloopError.exit_code


async def _until_signalled(config: Config, options: argparse.Namespace, console: Console) -> int:
    """Predict until it is done, or until SIGINT or SIGTERM ends it; what was answered until then is written."""
    task, loop = asyncio.ensure_future(_predict(config, options, console)), asyncio.get_running_loop()
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        code = await task
    except asyncio.CancelledError:
        if not received:
            raise
    if not received:
        return code
    console.print(f"stopped by {signal.Signals(received[0]).name}; what was answered until then is in {options.out}")
    return 128 + received[0]


async def _predict(config: Config, options: argparse.Namespace, console: Console) -> int:
    # torch takes seconds to import: a bad config is told before.
    from learner.prediction.opening import open_predictor
    from learner.prediction.predict import Prediction
    from learner.prediction.source import Folder, open_source

    async with open_predictor(config, console, is_plain=options.plain) as predictor:
        source = open_source(options.source, predictor.asking.vocabulary.special_texts, options.out)
        prediction = Prediction(predictor, source, options.out, options.classes, console)
        began = time.monotonic()
        await prediction.run()
        seconds = time.monotonic() - began
    tally = prediction.tally
    tally.show(console)
    rate = tally.num_pictures / seconds
    told = [f"pictures: {tally.num_pictures}, objects: {tally.num_objects}, {rate:.2f} pictures a second"]
    told += [f"failed: {tally.num_failed}"] if tally.num_failed else []
    told += [f"other files: {source.num_others}"] if isinstance(source, Folder) and source.num_others else []
    written = f"{options.out}: pictures, predictions.json (COCO results), images.json"
    for line in (", ".join(told), written):
        console.print(line, markup=False, soft_wrap=True)
    return 1 if tally.num_failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m learner.prediction", description=__doc__)
    parser.add_argument("--config", type=user_path, required=True, help="YAML file that names model and servers")
    parser.add_argument("--source", type=user_path, required=True, help="a picture, a folder or a JSONL file")
    parser.add_argument("--out", type=user_path, required=True, help="folder to write into")
    parser.add_argument("--classes", type=_names, default=(), help="keep only these names: a,b,c")
    parser.add_argument("--plain", action="store_true", help="leave the checkpoint's operating point unused")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the configuration")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is closed, and what torch has imported would take a second to tear down
