"""`python -m benchmarks.detection [--annotations FILE]`: parse, match and target against two baselines.

`box` and `poly` compare all three stages, per token, with benchmarks/reference/per_token.py (a speed-up, so more is
better) on answers and records that come again and again; `*_unseen` on such as were not seen before, whose descs were,
as in training; `*_cold` on the first of all, before any desc was encoded. The baseline's parsing is expected at 15 to
25 µs a token, as with transformers 4; transformers 5 decodes a single id in about half the time, so the measured time
stands beside the expected one. `*_parse` compares parsing alone with `json.loads(tokenizer.decode(ids))`, which gives
no positions; `*_answer` is the time of an unseen answer of 300 tokens in milliseconds.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import transformers

from benchmarks.answers import Answered, Kind, answered, build_tokenizer
from benchmarks.measure import compared, compared_after, print_measure, seconds_of
from benchmarks.reference import per_token
from learner.detection.matching import match_objects
from learner.detection.openings import head_of, opening_of, rest_of
from learner.detection.parsing import parse_rollout
from learner.detection.serialize import answer_text
from learner.detection.target_writer import stretch_of
from learner.detection.targets import ground_truth_target, rollout_target
from learner.detection.vocabulary import IM_END, CoordinateVocabulary

KINDS = ("bbox_2d", "poly")
PROMPT = tuple(range(100, 400))
BASELINE = "each id decoded, each character scanned, each pair rasterised"
AIMS = {"bbox_2d": ">= 30", "poly": ">= 10"}
EXPECTED_US = (15, 25)
"""What the baseline is known to take to parse a token, where its `tokenizer.decode` is that of transformers 4."""
NAMES = {"bbox_2d": "box", "poly": "poly"}


class Work:
    """The three stages over all answers, ours and the baseline's, each fed by the stage before it."""

    def __init__(self, answers: list[Answered], tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = CoordinateVocabulary.from_tokenizer(tokenizer)
        self.truths = [each.truth for each in answers]
        self.rollouts = [self.vocabulary.encode(answer_text(each.answer) + IM_END) for each in answers]
        self.num_tokens = sum(map(len, self.rollouts))
        self.parsed = self.parse()
        self.matches = self.match()
        self.found = self.parse_per_token()
        self.pairs = self.match_per_token()

    def parse(self) -> list[Any]:
        return [parse_rollout(ids, self.vocabulary, "stop", KINDS) for ids in self.rollouts]

    def match(self) -> list[Any]:
        return [match_objects(p.predictions, truth) for p, truth in zip(self.parsed, self.truths, strict=True)]

    def target(self) -> list[Any]:
        return [
            rollout_target("val:1", PROMPT, truth, parsed, match, self.vocabulary)
            for truth, parsed, match in zip(self.truths, self.parsed, self.matches, strict=True)
        ]

    def forget(self) -> None:
        """What ours keeps of texts that it encoded."""
        for cache in (opening_of, head_of, rest_of, stretch_of):
            cache.cache_clear()

    def see_descs(self) -> None:
        """Forget all and encode one other record, in which each desc stands once."""
        self.forget()
        items = {(item.desc, item.kind): item for truth in self.truths for item in truth}
        ground_truth_target("other:1", PROMPT, [items[key] for key in sorted(items)], self.vocabulary)

    def all_stages(self) -> None:
        for ids, truth in zip(self.rollouts, self.truths, strict=True):
            parsed = parse_rollout(ids, self.vocabulary, "stop", KINDS)
            match = match_objects(parsed.predictions, truth)
            rollout_target("val:1", PROMPT, truth, parsed, match, self.vocabulary)

    def decode_per_token(self) -> None:
        for ids in self.rollouts:
            per_token.decode_each(ids, self.tokenizer)

    def parse_per_token(self) -> list[Any]:
        return [per_token.parse(ids, self.tokenizer) for ids in self.rollouts]

    def match_per_token(self) -> list[Any]:
        return [per_token.match(found, truth) for (found, _, _), truth in zip(self.found, self.truths, strict=True)]

    def target_per_token(self) -> list[Any]:
        return [
            per_token.target(found, prefix, index, pairs, truth, self.tokenizer)
            for (found, prefix, index), pairs, truth in zip(self.found, self.pairs, self.truths, strict=True)
        ]

    def all_stages_per_token(self) -> None:
        for ids, truth in zip(self.rollouts, self.truths, strict=True):
            found, prefix, index = per_token.parse(ids, self.tokenizer)
            pairs = per_token.match(found, truth)
            per_token.target(found, prefix, index, pairs, truth, self.tokenizer)

    def parse_by_json(self) -> list[Any]:
        return [json.loads(self.tokenizer.decode(ids[:-1])) for ids in self.rollouts]

    def check(self) -> None:
        """The baseline does the same work: the same objects, and nearly as many matches (its masks are coarse)."""
        for parsed, (found, prefix, index) in zip(self.parsed, self.found, strict=True):
            ours = [(each.index, each.desc, each.bins, each.positions) for each in parsed.predictions]
            assert ours == [(each.index, each.desc, tuple(each.bins), tuple(each.positions)) for each in found]
            assert (parsed.prefix_token_ids, parsed.next_index) == (tuple(prefix), index)
        num_ours, num_theirs = sum(len(m.pairs) for m in self.matches), sum(map(len, self.pairs))
        assert abs(num_ours - num_theirs) <= max(2, num_ours // 10), (num_ours, num_theirs)


def measure(work: Work, kind: Kind, runs: int) -> None:
    name, per_token_us = NAMES[kind], partial(_microseconds, work.num_tokens)
    stages = {
        "parse": compared(work.parse, work.parse_per_token, runs, process_time),
        "match": compared(work.match, work.match_per_token, runs, process_time),
        "target": compared(work.target, work.target_per_token, runs, process_time),
    }
    preparations = {"": lambda: None, "_unseen": work.see_descs, "_cold": work.forget}
    whole = compared_after(preparations, work.all_stages, work.all_stages_per_token, runs, process_time)
    print_measure(
        "detection",
        name,
        1 / whole[""].ratio,
        AIMS[kind],
        BASELINE,
        runs,
        num_answers=len(work.rollouts),
        num_tokens=work.num_tokens,
        ours_us_per_token={stage: per_token_us(each.ours_s) for stage, each in stages.items()},
        baseline_us_per_token={stage: per_token_us(each.baseline_s) for stage, each in stages.items()},
        baseline_parse_expected_us_per_token=EXPECTED_US,
        baseline_parse_is_as_expected=EXPECTED_US[0] <= per_token_us(stages["parse"].baseline_s) <= EXPECTED_US[1],
        baseline_decode_us_per_id=per_token_us(seconds_of(work.decode_per_token, process_time)),
        transformers=transformers.__version__,
    )
    for way, aim in (("_unseen", AIMS[kind]), ("_cold", "none")):
        print_measure(
            "detection",
            name + way,
            1 / whole[way].ratio,
            aim,
            BASELINE,
            runs,
            ours_us_per_token=per_token_us(whole[way].ours_s),
            baseline_us_per_token=per_token_us(whole[way].baseline_s),
        )
    bare = compared(work.parse, work.parse_by_json, runs * 4, process_time)
    print_measure(
        "detection",
        f"{name}_parse",
        bare.ratio,
        "<= 1.5",
        "json.loads(tokenizer.decode(ids))",
        bare.runs,
        ours_us_per_token=per_token_us(bare.ours_s),
        baseline_us_per_token=per_token_us(bare.baseline_s),
    )
    ms_per_300_tokens = {way: each.ours_s / work.num_tokens * 300 * 1000 for way, each in whole.items()}
    print_measure(
        "detection",
        f"{name}_answer",
        ms_per_300_tokens["_unseen"],
        "<= 1" if kind == "bbox_2d" else "none",
        "1 ms",
        runs,
        ms_per_300_tokens_seen_before=round(ms_per_300_tokens[""], 4),
        ms_per_300_tokens_on_first_sight=round(ms_per_300_tokens["_cold"], 4),
    )


def _microseconds(num_tokens: int, seconds: float) -> float:
    return round(seconds / num_tokens * 1e6, 3)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__)
    parser.add_argument("--annotations", type=Path, help="COCO or LVIS annotation JSON; made-up annotations without it")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    kinds: tuple[Kind, Kind] = ("bbox_2d", "poly")
    for kind in kinds:
        answers = answered(options.annotations, kind)
        descs = sorted({item.desc for each in answers for item in each.truth})
        work = Work(answers, build_tokenizer(descs))
        work.check()
        measure(work, kind, options.runs)


if __name__ == "__main__":
    main()
