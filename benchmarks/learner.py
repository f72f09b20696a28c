"""`python -m benchmarks.learner [--vocab 152000] [--tokens 4096] [--passes 1 2 3]`: Channel A against a plain step.

Both sides learn one pack: rows of 256 tokens with an image each, a third of them supervised, on the same random weights
and in the same type. The plain step (benchmarks/reference/plain_step.py) makes all logits and reads the pack once;
`N=2 time` is Channel A with two passes over it. `memory` compares how far the peak of a step, gradients included, lies
above the loaded model, each side in a process of its own. `--size 2b` has the sizes of Qwen3-VL-2B; on a GPU it runs in
bfloat16 unless told otherwise.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils.logging import disable_progress_bar

from benchmarks.measure import print_measure, seconds_of
from benchmarks.reference.plain_step import PlainTrainer
from benchmarks.training_pack import SIZES, made_up_pack, save_model
from learner.channels.expectation import Expectation
from learner.channels.last_pass import LastPass
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_model, load_tokenizer
from learner.model.loaded import LoadedModel
from learner.packing.collate import collate
from learner.packing.packer import Pack
from learner.plan.step_plan import StepTotals
from shared.config.stage2 import Stage2Section

BASELINE = "transformers forward and backward, all logits, one pass"
AIMS = {("small", 1): "<= 0.8", ("small", 2): "<= 1.1", ("2b", 2): "<= 1.4"}
DENSE_BFLOAT16_TERAFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
"""By what the names of GPUs hold: the makers' figures, those of the SXM boards where there are several."""
PLAIN = 0
"""In the place of a number of passes: the plain step."""

Step = Callable[[], object]


def our_step(loaded: LoadedModel, pack: Pack, num_passes: int) -> Step:
    """Channel A's forward and backward over a pack, as the learner runs them."""
    tokenizer = load_tokenizer(str(loaded.folder))
    batch = collate(pack, loaded, pad_token_id=tokenizer.pad_token_id).to(loaded.device)
    ids = torch.tensor(CoordinateVocabulary.from_tokenizer(tokenizer).coordinate_ids, device=loaded.device)
    objective = Expectation(LastPass(Stage2Section(), ids), num_passes)
    totals = StepTotals(batch.num_samples, batch.num_boxes)

    def step() -> None:
        loaded.model.zero_grad(set_to_none=True)
        objective(loaded, batch, totals).total.backward()
        _wait_for(loaded.device)

    return step


def plain_step(loaded: LoadedModel, pack: Pack) -> Step:
    """The same pack learned the plain way, from the same checkpoint."""
    trainer = PlainTrainer(loaded.folder, loaded.device, loaded.compute_dtype)
    pad_token_id = load_tokenizer(str(loaded.folder)).pad_token_id
    inputs = trainer.inputs(collate(pack, loaded, pad_token_id=pad_token_id, layout="rows"))

    def step() -> None:
        trainer.step(inputs)
        _wait_for(loaded.device)

    return step


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def measure_time(options: argparse.Namespace, folder: Path) -> None:
    """Run all sides in turns and print the median ratio of each to the plain step of the same round.

    Each round begins with another side, so that none always has the same one before it.
    """
    loaded, pack = load_model(str(folder), dtype=options.dtype), made_up_pack(options.tokens)
    steps = {PLAIN: plain_step(loaded, pack), **{n: our_step(loaded, pack, n) for n in options.passes}}
    flops = {side: _flops_of(step) for side, step in steps.items()}
    rounds = [{side: seconds_of(steps[side]) for side in turned(list(steps), turn)} for turn in range(options.runs)]
    peak, no_peak = peak_teraflops(options.peak_tflops, loaded)
    for n in options.passes:
        ours_s, plain_s = (statistics.median(each[side] for each in rounds) for side in (n, PLAIN))
        print_measure(
            "learner",
            f"N={n} time",
            statistics.median(each[n] / each[PLAIN] for each in rounds),
            AIMS.get((options.size, n), "none"),
            BASELINE,
            options.runs,
            ours_s=round(ours_s, 3),
            baseline_s=round(plain_s, 3),
            ours_teraflops=round(flops[n] / 1e12, 3),
            baseline_teraflops=round(flops[PLAIN] / 1e12, 3),
            share_of_peak=round(flops[n] / ours_s / 1e12 / peak, 4) if peak else None,
            **({"no_share_of_peak": no_peak} if no_peak else {}),
            dtype=str(loaded.compute_dtype).removeprefix("torch."),
            device=loaded.device.type,
            tokens=pack.num_tokens,
            supervised=sum(item.num_tokens - item.target.num_prompt_tokens for item in pack.items),
            vocab=options.vocab,
        )


def turned(sides: list[int], turn: int) -> list[int]:
    """The sides in their order, from the one at `turn` on."""
    first = turn % len(sides)
    return sides[first:] + sides[:first]


def peak_teraflops(given: float | None, loaded: LoadedModel) -> tuple[float | None, str]:
    """What the device multiplies at best, in 10^12 operations a second, or None and why that is not known."""
    if given is not None:
        return given, ""
    name = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else loaded.device.type
    is_known_type = loaded.compute_dtype is torch.bfloat16
    peak = next((known for part, known in DENSE_BFLOAT16_TERAFLOPS.items() if part in name and is_known_type), None)
    dtype = str(loaded.compute_dtype).removeprefix("torch.")
    return peak, "" if peak else f"no peak is known for {dtype} on {name}; give --peak-tflops"


def _flops_of(step: Step) -> int:
    """Floating-point operations of a step's matrix products; the run also warms the step up."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure_memory(options: argparse.Namespace, folder: Path) -> None:
    """Compare peaks over the loaded model; Channel A with as many passes as were asked for at most."""
    ours, plain = (_peak_in_a_process(options, folder, side) for side in (max(options.passes), PLAIN))
    print_measure(
        "learner",
        "memory",
        ours / plain,
        "<= 0.5" if options.size == "small" else "none",
        BASELINE,
        1,
        ours_mib=round(ours / 2**20),
        baseline_mib=round(plain / 2**20),
        passes=max(options.passes),
    )


def _peak_in_a_process(options: argparse.Namespace, folder: Path, side: int) -> int:
    command = [sys.executable, "-m", "benchmarks.learner", "--tokens", str(options.tokens), "--dtype", options.dtype]
    found = subprocess.run([*command, "--peak-of", str(folder), str(side)], check=True, capture_output=True, text=True)
    return int(found.stdout)


def peak_bytes(folder: Path, side: int, tokens: int, dtype: str) -> int:
    """Bytes by which one step's peak lies above the loaded model."""
    loaded, pack = load_model(str(folder), dtype=dtype), made_up_pack(tokens)
    if side == PLAIN:
        step = plain_step(loaded, pack)
        loaded.model.to("meta")  # the plain step has a model of its own
    else:
        step = our_step(loaded, pack, side)
    if loaded.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begin the high-water mark anew
    step()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=__doc__)
    parser.add_argument("--vocab", type=int, default=152_000)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="float32, but for 2b on a GPU")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peak-tflops", type=float, help="what the device can do; known for some GPUs in bfloat16")
    parser.add_argument("--peak-of", nargs=2, metavar=("FOLDER", "PASSES"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.dtype is None:
        options.dtype = "bfloat16" if options.size == "2b" and torch.cuda.is_available() else "float32"
    disable_progress_bar()
    if options.peak_of:
        print(peak_bytes(Path(options.peak_of[0]), int(options.peak_of[1]), options.tokens, options.dtype))
        return
    with TemporaryDirectory() as folder:
        save_model(Path(folder), options.size, options.vocab)
        measure_memory(options, Path(folder))
        measure_time(options, Path(folder))


if __name__ == "__main__":
    main()
