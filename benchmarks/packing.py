"""`python -m benchmarks.packing [--annotations FILE]`: how full packs get, and how long packing takes.

`fill` is the packer's fill as a share of what ⌈Σ/capacity⌉ packs would have, for all lengths at once; `streaming_*` is
the same for lengths that come one by one, with a learner that is never, at one in ten or at all of them ready for a
pack, and gets the fullest there is.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

from benchmarks.answers import answered, build_tokenizer
from benchmarks.measure import print_measure, seconds_of
from learner.detection.serialize import answer_text
from learner.packing.packer import Packer, pack_lengths

CAPACITY = 12_000
STEP = 256
"""Targets of one optimizer step: what the streaming packer sees before it is closed."""
IMAGE_SIDE = (15, 40)
"""Tokens along an image's sides: 480 to 1280 px at 32 px a token."""


@dataclass(frozen=True)
class Item:
    num_tokens: int


def lengths_of(annotations: Path | None, num_lengths: int, seed: int = 0) -> list[int]:
    """Lengths of targets: prompt, image and answer."""
    rng = random.Random(seed)
    answers = answered(annotations, "bbox_2d", num_images=200)
    tokenizer = build_tokenizer(sorted({item.desc for each in answers for item in each.truth}))
    answer_lengths = [len(tokenizer.encode(answer_text(each.truth))) for each in answers]
    return [
        60 + rng.randint(*IMAGE_SIDE) * rng.randint(*IMAGE_SIDE) + rng.choice(answer_lengths)
        for _ in range(num_lengths)
    ]


def share_of_bound(num_packs: int, lengths: Sequence[int]) -> float:
    return -(-sum(lengths) // CAPACITY) / num_packs


def streamed(lengths: Sequence[int], learner: str, rng: random.Random) -> Iterator[int]:
    """The number of packs of each step."""
    for start in range(0, len(lengths), STEP):
        packer: Packer[Item] = Packer(CAPACITY, min_fill=0.7)
        num_packs = 0
        for length in lengths[start : start + STEP]:
            packer.add(Item(length))
            if learner == "always" or (learner == "sometimes" and rng.random() < 0.1):
                num_packs += packer.take(hungry=True) is not None
        yield num_packs + len(packer.close())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=__doc__)
    parser.add_argument("--annotations", type=Path, help="COCO or LVIS annotation JSON; made-up annotations without it")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    lengths = lengths_of(options.annotations, 10_000)
    bound = "⌈Σ/capacity⌉ packs"
    packs = pack_lengths(lengths, CAPACITY)
    details = {"capacity": CAPACITY, "num_lengths": len(lengths), "mean_length": sum(lengths) / len(lengths)}
    print_measure("packing", "fill", share_of_bound(len(packs), lengths), ">= 0.98", bound, 1, **details)
    seconds = sorted(seconds_of(lambda: pack_lengths(lengths, CAPACITY), process_time) for _ in range(options.runs))
    print_measure(
        "packing", "time", seconds[len(seconds) // 2] / 0.05, "<= 1", "50 ms for 10,000 lengths", options.runs
    )
    for learner in ("never", "sometimes", "always"):
        num_packs = sum(streamed(lengths, learner, random.Random(0)))
        of_steps = sum(-(-sum(lengths[start : start + STEP]) // CAPACITY) for start in range(0, len(lengths), STEP))
        print_measure(
            "packing",
            f"streaming_{learner}_hungry",
            of_steps / num_packs,
            "none",
            f"{bound}, step by step",
            1,
            step=STEP,
            fill=round(sum(lengths) / CAPACITY / num_packs, 4),
        )


if __name__ == "__main__":
    main()
