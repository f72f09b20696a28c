"""What never fits is told before the first step."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

from learner.data.encoding import Encoder
from learner.data.lengths import prompt_lengths, without_long_records
from learner.data.opening import MAX_MODEL_LEN, check_validation_prompts, fit_training
from learner.data.records import Reading, RecordSource
from learner.detection.record import Record
from learner.detection.targets import ground_truth_target
from learner.detection.vocabulary import CoordinateVocabulary
from learner.families.load import load_tokenizer
from learner.servers.rollouts import check_server
from shared.errors import ConfigError, DataError
from shared.wire import ServerInfo, ServerLimits

MAX_NEW_TOKENS = "custom.extra.rollout_matching.max_new_tokens"


@pytest.fixture
def vocabulary(checkpoint: Path) -> CoordinateVocabulary:
    return CoordinateVocabulary.from_tokenizer(load_tokenizer(str(checkpoint)))


@pytest.fixture
def source(image: Callable[..., bytes], tmp_path: Path) -> RecordSource:
    """A record with one object, and one with twelve."""
    (tmp_path / "image.png").write_bytes(image(0))
    lines = [
        {
            "images": ["image.png"],
            "width": 64,
            "height": 64,
            "objects": [{"desc": "red circle", "bbox_2d": [n, n, n + 20, n + 20]} for n in range(count)],
        }
        for count in (1, 12)
    ]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return RecordSource.opened(path, Reading(), seed=None)[0]


def records_of(source: RecordSource) -> list[Record]:
    return [source.record_at(cursor) for cursor in range(source.num_records)]


def sizes_of(source: RecordSource) -> list[tuple[int, int]]:
    return [(line.width, line.height) for line in source.lines()]


def lengths(source: RecordSource, encoder: Encoder, vocabulary: CoordinateVocabulary) -> list[int]:
    return [
        ground_truth_target("", encoder.encode_now(record).prompt_token_ids, record.objects, vocabulary).num_tokens
        for record in records_of(source)
    ]


def test_a_record_is_long_when_no_pack_holds_prompt_and_answer(
    source: RecordSource, encoder: Encoder, vocabulary: CoordinateVocabulary
) -> None:
    _, longest = lengths(source, encoder, vocabulary)
    fitting = without_long_records(source, encoder, vocabulary, longest, "error")
    assert (fitting.source.num_records, fitting.longest_target) == (2, longest)
    with pytest.raises(DataError) as raised:
        without_long_records(source, encoder, vocabulary, longest - 1, "error")
    for part in ("data:2", str(longest), str(longest - 1), "global_max_length", "custom.on_long_target: skip"):
        assert part in str(raised.value)


def test_long_records_can_be_left_out(source, encoder, vocabulary) -> None:
    _, longest = lengths(source, encoder, vocabulary)
    left = without_long_records(source, encoder, vocabulary, longest - 1, "skip")
    assert [record.record_id for record in records_of(left.source)] == ["data:1"]


def test_the_quick_bound_is_never_too_low_and_gives_way_to_the_exact_number(source, encoder, vocabulary) -> None:
    exact = lengths(source, encoder, vocabulary)
    prompts = [encoder.num_prompt_tokens(*size) for size in sizes_of(source)]
    assert prompts == [len(encoder.encode_now(record).prompt_token_ids) for record in records_of(source)]
    bounds = [prompt + line.most_answer_tokens for prompt, line in zip(prompts, source.lines(), strict=True)]
    assert all(length <= bound for length, bound in zip(exact, bounds, strict=True))
    within = without_long_records(source, encoder, vocabulary, bounds[1], "error")
    assert (within.longest_target, within.longest_prompt) == (bounds[1], max(prompts))
    assert bounds[1] > exact[1]
    assert without_long_records(source, encoder, vocabulary, bounds[1] - 1, "error").longest_target == exact[1]


def test_a_record_s_own_prompt_counts_and_of_those_that_ask_alike_one_is_read(
    source, encoder, vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = orjson.loads(source.path.read_bytes().splitlines()[0])
    asking = [{}, {"prompt": "Detect. " * 9}, {"classes": ["a"]}, {"prompt": "Detect. " * 9}, {"classes": ["a"]}, {}]
    path = tmp_path / "asking.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps({**line, **each}) for each in asking))
    source, _ = RecordSource.opened(path, Reading(), seed=None)
    expected = [len(encoder.encode_now(record).prompt_token_ids) for record in records_of(source)]
    assert expected[1] > expected[0] == expected[2]
    read: list[int] = []
    reading = RecordSource.read
    monkeypatch.setattr(
        RecordSource, "read", lambda self, line, epoch=0: read.append(line.number) or reading(self, line)
    )
    assert list(map(prompt_lengths(source, encoder), source.lines())) == expected
    assert read == [2, 3]
    monkeypatch.undo()
    capacity = max(lengths(source, encoder, vocabulary)) - 1
    fitting = without_long_records(source, encoder, vocabulary, capacity, "skip")
    assert [record.record_id for record in records_of(fitting.source)] == [f"asking:{n}" for n in (1, 3, 5, 6)]
    assert fitting.longest_prompt == expected[0]


@pytest.mark.parametrize(
    ("global_room", "server_room", "small"),
    [
        (400, None, None),
        (399, None, "global_max_length"),
        (400, 400, None),
        (399, 400, "global_max_length"),
        (400, 399, MAX_MODEL_LEN),
        (399, 2000, "global_max_length"),
    ],
)
def test_a_prompt_must_leave_room_for_the_answer_in_a_pack_and_on_a_server(
    source, encoder, vocabulary, config_of, global_room: int, server_room: int | None, small: str | None
) -> None:
    """`…_room` is what is left beside the longest prompt, for an answer of 400 new tokens."""
    prompt = max(encoder.num_prompt_tokens(*size) for size in sizes_of(source))
    limits = {"global_max_length": prompt + global_room, MAX_MODEL_LEN: server_room and prompt + server_room}
    keys = [f"{key}={'null' if value is None else value}" for key, value in limits.items()]
    config = config_of(*keys, f"{MAX_NEW_TOKENS}=400")
    if small is None:
        assert fit_training(source, encoder, vocabulary, config).source.num_records == 2
        return
    with pytest.raises(ConfigError) as raised:
        fit_training(source, encoder, vocabulary, config)
    said = f"{small}: the longest prompt of {source.path} has {prompt} tokens; with 400 new ones it exceeds "
    assert str(raised.value).startswith(f"{said}{limits[small]};")


def test_a_prompt_that_is_left_out_needs_no_room(tmp_path: Path, vocabulary, config_of) -> None:
    """The longest prompt stands in the record that no pack can hold."""
    path = tmp_path / "data.jsonl"
    sizes = ({"width": width, "height": 64, "images": ["none.png"], "objects": []} for width in (64, 128))
    path.write_bytes(b"\n".join(map(orjson.dumps, sizes)))
    source, _ = RecordSource.opened(path, Reading(check_images=False), seed=None)
    encoder = SimpleNamespace(num_prompt_tokens=lambda width, height: {64: 20, 128: 99}[width])
    config = config_of("global_max_length=100", "custom.on_long_target=skip", f"{MAX_NEW_TOKENS}=80")
    assert fit_training(source, encoder, vocabulary, config).longest_prompt == 20


def test_a_validation_prompt_must_leave_room_on_a_server(source, encoder, config_of) -> None:
    """Packs never hold one, so `global_max_length` counts only where it is the server's length too."""
    prompts = [encoder.num_prompt_tokens(*size) for size in sizes_of(source)]
    prompt, val = max(prompts), "custom.val_jsonl=val.jsonl"
    answer, stage1 = f"{MAX_NEW_TOKENS}=400", "custom.trainer_variant=stage1_sft"
    fits = config_of(val, "global_max_length=401", f"{MAX_MODEL_LEN}={prompt + 400}", answer)
    assert check_validation_prompts(prompts, fits) == prompt
    for key in ("global_max_length", MAX_MODEL_LEN):
        small = f"{key}={prompt + 399}"
        with pytest.raises(ConfigError, match=rf"^{key}: the longest prompt of val.jsonl has {prompt} tokens"):
            check_validation_prompts(prompts, config_of(val, answer, small))
    nothing_is_decoded = config_of(val, answer, "global_max_length=1", stage1)
    assert check_validation_prompts(prompts, nothing_is_decoded) == prompt


def test_a_server_with_another_tokenizer_is_refused(checkpoint: Path) -> None:
    limits = ServerLimits(
        max_model_len=1, max_num_seqs=1, max_open_samples=1, max_images_per_sample=1, max_image_pixels=1,
        max_body_bytes=1,
    )  # fmt: skip
    own = ServerInfo(
        model="m", tokenizer_digest="0" * 64, engine="hf", limits=limits, capabilities=(), policy_version=None
    )
    with pytest.raises(ConfigError, match=r"http://a serves m with another tokenizer \(000000000000\)"):
        check_server(own, "http://a", checkpoint)


async def test_a_server_with_the_same_checkpoint_is_taken(serving, scripted, checkpoint: Path) -> None:
    with serving(scripted()) as running:
        async with running.client() as client:
            info = ServerInfo.model_validate_json((await client.get("/info")).content)
    assert len(info.tokenizer_digest) == 64
    check_server(info, running.url, checkpoint)
