"""What holds for any objects, any way to put their answer into ids, and any place where it is cut."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from learner.detection.matching import Match, match_objects
from learner.detection.parsing import ParsedRollout, RolloutParser, parse_rollout
from learner.detection.record import GroundTruthObject
from learner.detection.serialize import answer_text, object_text
from learner.detection.targets import Target, TargetWeights, ground_truth_target, rollout_target
from learner.detection.vocabulary import CoordinateVocabulary

PROMPT = (5, 6, 7)
END = "<|im_end|>"
COORDINATE = re.compile(r"(<\|coord_[0-9]+\|>)")
SPECIAL = re.compile(r"<\|[a-z_0-9]+\|>")
Entries = list[tuple[str, dict[str, Any]]]

corner = st.integers(0, 998)
boxes = st.tuples(corner, corner, st.integers(1, 400), st.integers(1, 400)).map(
    lambda box: (box[0], box[1], min(box[0] + box[2], 999), min(box[1] + box[3], 999))
)
letters = st.one_of(st.sampled_from('<|>{}[]"\\/:, _1dn'), st.characters(codec="utf-8"))
descs = st.text(letters, min_size=1, max_size=8).filter(lambda desc: desc.strip() and not SPECIAL.search(desc))
objects = st.lists(st.builds(GroundTruthObject, descs, st.just("bbox_2d"), boxes), max_size=5)
randoms = st.integers(0, 2**32).map(random.Random)


@settings(max_examples=100, deadline=None)
@given(objects, randoms)
def test_whole_objects_come_back_at_any_cut(
    vocabulary: CoordinateVocabulary, items: list[GroundTruthObject], rng: random.Random
) -> None:
    ids = cut(ids_of(answer_text(items), vocabulary, rng), vocabulary, rng)
    written = text_of(ids, vocabulary)
    num_whole = len(whole_entries(written, [object_text(*each) for each in enumerate(items, 1)]))
    slots = slots_in(ids, vocabulary)
    parsed = fed(ids, vocabulary, rng)
    assert [(each.index, each.desc, each.kind, each.bins, each.positions) for each in parsed.predictions] == [
        (number, item.desc, item.kind, item.bins, positions)
        for number, (item, positions) in enumerate(zip(items[:num_whole], slots, strict=False), 1)
    ]
    assert parsed.prefix_token_ids == (tuple(ids[: slots[num_whole - 1][-1] + 1]) if num_whole else ())
    assert parsed.next_index == num_whole + 1
    is_closed = written.startswith(answer_text(items))
    assert parsed.truncated == (bool(written) and not is_closed)
    assert parsed.empty == (is_closed and not items)
    assert parsed.malformed == (not written)
    assert sum(parsed.dropped.values()) <= parsed.truncated


@settings(max_examples=25, deadline=None)
@given(objects)
def test_what_is_written_is_the_tokenizer_s_own_text(
    vocabulary: CoordinateVocabulary, items: list[GroundTruthObject]
) -> None:
    ids = [*vocabulary.encode(answer_text(items)), vocabulary.im_end_id]
    assert ground_truth_target("train:1", PROMPT, items, vocabulary).token_ids == (*PROMPT, *ids)


@settings(max_examples=100, deadline=None)
@given(st.data(), objects, randoms)
def test_every_ground_truth_object_is_taught_exactly_once(
    vocabulary: CoordinateVocabulary,
    answer_of: Callable[[Target], Entries],
    data: st.DataObject,
    truth: list[GroundTruthObject],
    rng: random.Random,
) -> None:
    truth = sorted(truth, key=lambda item: item.bins[1::-1]) if data.draw(st.booleans()) else truth
    said = [moved(item, rng) for item in rng.choices(truth, k=rng.randint(0, 4))] if truth else []
    said = rng.sample([*said, *data.draw(objects)[:2]], k=len(said)) if said else data.draw(objects)[:2]
    entries = [object_text(number, reversed_at_times(item, rng)) for number, item in enumerate(said, 1)]
    key = data.draw(st.sampled_from(['"object_2"', '"object_2x"', '"object_7"', '"object_1"', '"x"']))
    entries[1:2] = [entry.replace('"object_2"', key, 1) for entry in entries[1:2]]
    ids = cut(ids_of("{" + ", ".join(entries) + "}", vocabulary, rng), vocabulary, rng)
    parsed = fed(ids, vocabulary, rng)
    num_whole = len(whole_entries(text_of(ids, vocabulary), entries))
    heard = [item for place, item in enumerate(said[:num_whole]) if place != 1 or key not in ('"object_2x"', '"x"')]
    assert [(each.desc, each.bins) for each in parsed.predictions] == [(item.desc, item.bins) for item in heard]
    match = match_objects(parsed.predictions, truth)
    weights = TargetWeights(
        prefix_extras=data.draw(st.sampled_from(["keep", "drop"])),
        prefix_structure_ce_weight=data.draw(st.sampled_from([0.0, 0.5])),
        stop_ce_weight=data.draw(st.sampled_from([0.0, 0.25, 1.0])),
    )
    whole = rollout_target("train:1", PROMPT, truth, parsed, match, vocabulary, weights=weights)
    alone = ground_truth_target("train:1", PROMPT, truth, vocabulary, weights)
    partner = {i: j for i, j, iou in match.pairs if iou >= weights.supervise_iou}
    assert whole.token_ids[:3] == PROMPT
    assert whole.token_ids[-1] == vocabulary.im_end_id
    assert sorted(bins for _, bins in whole.boxes) == sorted(item.bins for item in truth)
    assert list(whole.ce_positions) == sorted(set(whole.ce_positions))
    assert whole.ce_denominator == alone.ce_denominator
    if weights.prefix_extras == "drop" or parsed.truncated:
        found = {j: parsed.predictions[i].bins for i, j in partner.items()}
        check_rewritten(whole, alone, answer_of(whole), truth, found, vocabulary)
        return
    check_prefix(whole, answer_of(whole), ids, truth, parsed, partner, vocabulary, weights)
    capacity = data.draw(st.integers(alone.num_tokens, max(alone.num_tokens, whole.num_tokens)))
    short = rollout_target("train:1", PROMPT, truth, parsed, match, vocabulary, capacity, weights)
    assert short.num_tokens <= capacity
    assert (short.num_shortened == 0) == (short == whole)
    check_prefix(short, answer_of(short), ids, truth, parsed, partner, vocabulary, weights)
    if short.num_shortened:
        last = len(parsed.predictions) - short.num_shortened
        one_more = replace(parsed, predictions=parsed.predictions[: last + 1])
        pairs = Match(tuple(pair for pair in match.pairs if pair[0] <= last))
        longer = rollout_target("train:1", PROMPT, truth, one_more, pairs, vocabulary, weights=weights)
        assert longer.num_tokens > capacity


def check_rewritten(
    target: Target,
    alone: Target,
    entries: Entries,
    truth: list[GroundTruthObject],
    found: dict[int, tuple[int, ...]],
    vocabulary: CoordinateVocabulary,
) -> None:
    """Hold a target against the truth's own: it differs in coordinates alone, and only those of `found` may."""
    assert target.num_tokens == alone.num_tokens
    slots = slots_in(target.token_ids, vocabulary)
    assert [(key, value["desc"]) for key, value in entries] == [
        (f"object_{number}", item.desc) for number, item in enumerate(truth, 1)
    ]
    written = [bins_at(own, target, vocabulary) for own in slots]
    for j, (bins, item) in enumerate(zip(written, truth, strict=True)):
        assert bins in (item.bins, found.get(j))
    assert list(target.boxes) == [(own, item.bins) for own, item in zip(slots, truth, strict=True)]
    others = [place for place, token_id in enumerate(target.token_ids) if not vocabulary.is_coordinate(token_id)]
    assert [target.token_ids[place] for place in others] == [alone.token_ids[place] for place in others]
    assert set(target.ce_positions) <= set(alone.ce_positions)
    in_order = [item.bins[1::-1] for item in truth] == sorted(item.bins[1::-1] for item in truth)
    if in_order:
        corners = [(top, left) for left, top, *_ in written]
        assert corners == sorted(corners)
    else:
        assert written == [found.get(j, item.bins) for j, item in enumerate(truth)]


def check_prefix(
    target: Target,
    entries: Entries,
    ids: list[int],
    truth: list[GroundTruthObject],
    parsed: ParsedRollout,
    partner: dict[int, int],
    vocabulary: CoordinateVocabulary,
    weights: TargetWeights,
) -> None:
    """Hold a target, and the key/value pairs of its answer, against the rollout `ids` whose prefix it keeps."""
    num_kept = len(parsed.predictions) - target.num_shortened
    found = {j for i, j in partner.items() if i < num_kept}
    missing = [item for j, item in enumerate(truth) if j not in found]
    tail = entries[len(entries) - len(missing) :]
    assert [value for _, value in tail] == [shown(item) for item in missing]
    keys = Counter(key for key, _ in entries)
    assert all(keys[key] == 1 for key, _ in tail)
    slots = slots_in(target.token_ids, vocabulary)
    tail_slots = slots[len(slots) - len(missing) :]
    prefix = tuple(ids[: parsed.predictions[num_kept - 1].positions[-1] + 1]) if num_kept else ()
    assert target.token_ids[3 : 3 + len(prefix)] == prefix
    assert not prefix or vocabulary.is_coordinate(prefix[-1])
    assert tail_slots == [each for each in slots if each[0] >= 3 + len(prefix)]
    if not weights.prefix_structure_ce_weight and (missing or weights.stop_ce_weight):
        assert target.ce_positions[0] == 3 + len(prefix)
    own_slots = [tuple(3 + place for place in each.positions) for each in parsed.predictions[:num_kept]]
    assert list(target.boxes) == [
        *[(own, truth[partner[i]].bins) for i, own in enumerate(own_slots) if i in partner],
        *[(own, item.bins) for item, own in zip(missing, tail_slots, strict=True)],
    ]
    assert [bins_at(own, target, vocabulary) for own in tail_slots] == [item.bins for item in missing]


# --- answers, cut and spelled in any way ------------------------------------------------------------------------------


def ids_of(text: str, vocabulary: CoordinateVocabulary, rng: random.Random) -> list[int]:
    """Ids of an answer and its stop: as the tokenizer has them, or of its text in pieces of any length.

    Coordinates stay whole. Some pieces come byte by byte, so that characters are split over tokens.
    """
    if rng.random() < 0.3:
        return vocabulary.encode(text + END)
    ids: list[int] = []
    for part in COORDINATE.split(text):
        if COORDINATE.fullmatch(part):
            ids += vocabulary.encode(part)
            continue
        while part:
            size = rng.randint(1, 12)
            piece, part = part[:size], part[size:]
            ids += spelled(piece, vocabulary) if rng.random() < 0.2 else vocabulary.encode(piece)
    return [*ids, vocabulary.im_end_id]


def spelled(text: str, vocabulary: CoordinateVocabulary) -> list[int]:
    return [byte_ids(vocabulary)[byte] for byte in text.encode()]


@lru_cache
def byte_ids(vocabulary: CoordinateVocabulary) -> dict[int, int]:
    """The token of every single byte."""
    pieces = {token_id: vocabulary.decode_pieces([token_id]) for token_id in range(256)}
    return {piece[0]: token_id for token_id, piece in pieces.items() if len(piece) == 1}


def cut(ids: list[int], vocabulary: CoordinateVocabulary, rng: random.Random) -> list[int]:
    """As many of the ids as chance will have; at times the end that a server cuts at is spelled there."""
    ids = ids if rng.random() < 0.3 else ids[: rng.randint(0, len(ids))]
    return ids if rng.random() < 0.8 else [*ids, *spelled(END + " }", vocabulary)]


def text_of(ids: list[int], vocabulary: CoordinateVocabulary) -> str:
    """The text before the end, without half a character."""
    return vocabulary.decode_pieces(ids).decode(errors="ignore").partition(END)[0]


def fed(ids: list[int], vocabulary: CoordinateVocabulary, rng: random.Random) -> ParsedRollout:
    """What comes of feeding ids in pieces of any length; the same as of parsing them at once."""
    parser = RolloutParser(vocabulary)
    start = 0
    while start < len(ids):
        size = rng.choice((0, 1, 2, 5, 40))
        parser.feed(ids[start : start + size])
        start += size
    parsed = parser.finish()
    assert parsed == parse_rollout(ids, vocabulary)
    return parsed


def whole_entries(written: str, entries: Sequence[str]) -> Sequence[str]:
    """The entries, of those an answer was made of, that stand in what is left of it with their closing braces."""
    return max(
        (entries[:count] for count in range(len(entries) + 1) if written.startswith("{" + ", ".join(entries[:count]))),
        key=len,
        default=(),
    )


def moved(item: GroundTruthObject, rng: random.Random) -> GroundTruthObject:
    """The object as a model sees it: at times with another name, or some bins beside it."""
    x1, y1, x2, y2 = (min(999, max(0, bin + rng.choice((0, 0, -30, 10, 200)))) for bin in item.bins)
    if x1 >= x2 or y1 >= y2:
        return item
    return GroundTruthObject(rng.choice((item.desc, "moved")), "bbox_2d", (x1, y1, x2, y2))


def reversed_at_times(item: GroundTruthObject, rng: random.Random) -> GroundTruthObject:
    x1, y1, x2, y2 = item.bins
    x1, x2 = (x2, x1) if rng.random() < 0.1 else (x1, x2)
    y1, y2 = (y2, y1) if rng.random() < 0.1 else (y1, y2)
    return GroundTruthObject(item.desc, item.kind, (x1, y1, x2, y2))


def slots_in(ids: Sequence[int], vocabulary: CoordinateVocabulary) -> list[tuple[int, ...]]:
    """The places of coordinate tokens, four by four; what is left of a box that was cut stays away."""
    places = [place for place, token_id in enumerate(ids) if vocabulary.is_coordinate(token_id)]
    return list(zip(*[iter(places)] * 4, strict=False))


def bins_at(places: Sequence[int], target: Target, vocabulary: CoordinateVocabulary) -> tuple[int | None, ...]:
    return tuple(vocabulary.bin_of(target.token_ids[place]) for place in places)


def shown(item: GroundTruthObject) -> dict[str, object]:
    return {"desc": item.desc, item.kind: [f"<|coord_{bin}|>" for bin in item.bins]}
