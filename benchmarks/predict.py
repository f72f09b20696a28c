"""`boxloop predict` against the engine that decodes for it: pictures a second.

A server process on one core; on the other one what `boxloop predict` runs beside it, which reads pictures, asks for
them, draws the answers and writes all files. The baseline is the same engine alone, on the server's core, with
everything read and encoded before. In turns, with new pictures each time, every answer as long as asked, as those with
four or five objects are; starting both is no part of it.
"""

import argparse
import asyncio
import io
import os
import random
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from benchmarks.measure import print_measure
from benchmarks.service import OfflineHf
from benchmarks.two_processes import CANVAS_PX, SIZES, on_core, run_as_child, servers, write_config
from learner.model.tiny import build_tiny
from learner.prediction.opening import Predictor, open_predictor
from learner.prediction.predict import Prediction
from learner.prediction.source import open_source
from rollout_server.engines.base import EngineRequest
from rollout_server.settings import ServerSettings, limits_for
from shared.config.load import load_config
from shared.config.models import Config

MAX_MODEL_LEN, MAX_NUM_SEQS, MAX_NEW_TOKENS = 512, 16, 128
ROLLOUT = "custom.extra.rollout_matching"
SERVER_CORE, OWN_CORE = 0, 1


def write_pictures(folder: Path, count: int, seed: int) -> Path:
    """Pictures of noise, which take longest to read, to send and to write."""
    rng = random.Random(seed)
    folder.mkdir()
    for number in range(count):
        Image.frombytes("RGB", (CANVAS_PX, CANVAS_PX), rng.randbytes(3 * CANVAS_PX**2)).save(folder / f"{number}.png")
    return folder


async def predicted(config: Config, pictures: Path, out: Path) -> tuple[float, list[EngineRequest]]:
    """Pictures a second, and the same pictures as requests to an engine."""
    console = Console(file=io.StringIO())
    async with open_predictor(config, console, is_plain=True) as predictor:
        source = open_source(pictures, frozenset(), out)
        began = time.perf_counter()
        prediction = Prediction(predictor, source, out, (), console)
        await prediction.run()
        seconds = time.perf_counter() - began
        requests = requests_of(predictor, pictures)
    return prediction.tally.num_pictures / seconds, requests


def requests_of(predictor: Predictor, pictures: Path) -> list[EngineRequest]:
    asking = predictor.asking
    encoded = map(asking.encoder.encode_now, open_source(pictures, frozenset(), pictures / "none").records(print))
    make = partial(EngineRequest, sampling=asking.sampling, return_logprobs=True)
    return [make(str(n), each.request_token_ids, (each.image.png,)) for n, each in enumerate(encoded)]


def measure(config: Config, folder: Path, engine: OfflineHf, num_pictures: int, runs: int) -> None:
    """Print the median ratio of `runs` pairs, after one that does not count."""
    pairs = []
    for turn in range(runs + 1):
        pictures = write_pictures(folder / f"pictures-{turn}", num_pictures, turn)
        out = folder / f"out-{turn}"
        out.mkdir()
        with on_core(OWN_CORE):
            ours, requests = asyncio.run(predicted(config, pictures, out))
        began = time.perf_counter()
        engine.generate(requests)
        pairs.append((ours, num_pictures / (time.perf_counter() - began)))
    ours, alone = (statistics.median(side) for side in zip(*pairs[1:], strict=True))
    ratio = statistics.median(mine / theirs for mine, theirs in pairs[1:])
    rates = {"pictures_per_s": round(ours, 2), "engine_pictures_per_s": round(alone, 2)}
    about = {"pictures": num_pictures, "max_new_tokens": MAX_NEW_TOKENS}
    print_measure("predict", "hf", ratio, ">= 0.9", "the engine alone, all encoded before", runs, **about, **rates)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder, model = Path(name), Path(name) / "model"
        build_tiny(model, **SIZES)
        values = {
            "global_max_length": MAX_MODEL_LEN,
            "template.max_pixels": CANVAS_PX**2,
            "custom.train_jsonl": "none.jsonl",
            "custom.on_bad_record": "skip",
            "custom.extra.stage2_ab.schedule.pattern": ["B"],
            f"{ROLLOUT}.rollout_backend": "hf",
            f"{ROLLOUT}.temperature": 0.0,
            f"{ROLLOUT}.max_new_tokens": MAX_NEW_TOKENS,
            f"{ROLLOUT}.vllm.max_num_seqs": MAX_NUM_SEQS,
        }
        written = write_config(folder, model, values)
        with servers(written, folder, [()], core=SERVER_CORE) as (url,):
            address = f"{ROLLOUT}.vllm.server.servers=[{{base_url: '{url}'}}]"
            limits = limits_for(MAX_MODEL_LEN, MAX_NUM_SEQS)
            with on_core(SERVER_CORE):  # the engine's thread stays where it is started
                settings = ServerSettings(str(model), "hf", limits, dtype="float32", max_pixels=CANVAS_PX**2)
                engine = OfflineHf(settings)
            measure(load_config(written, [address]), folder, engine, options.pictures, options.runs)


if __name__ == "__main__":
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    run_as_child("benchmarks.predict")
    main()
