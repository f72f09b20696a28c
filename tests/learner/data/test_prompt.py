"""The prompt in ids: built once, expanded by the image's grid."""

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image
from transformers import AutoTokenizer

from learner.data.encoding import MOST_ENCODED, Encoder
from learner.data.images import ImageReader
from learner.data.prompt import SYSTEM_PROMPT, USER_PROMPTS, chat_text
from learner.detection.record import Record
from learner.detection.vocabulary import CoordinateVocabulary
from shared.errors import DataError


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def reader(tiny_folder: Path) -> ImageReader:
    return ImageReader.from_checkpoint(tiny_folder)


def record_at(folder: Path, width: int = 96, height: int = 64) -> Record:
    path = folder / f"{width}x{height}.png"
    Image.new("RGB", (width, height), "white").save(path)
    return Record(f"val:{width}", (str(path),), width, height, ())


def test_the_request_is_the_chat_with_one_placeholder(tokenizer: Any, reader: ImageReader) -> None:
    encoder = Encoder(tokenizer, reader)
    assert tokenizer.decode(encoder.request_token_ids) == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{USER_PROMPTS['sorted']}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_prompt_holds_a_placeholder_for_each_merged_patch(
    tokenizer: Any, reader: ImageReader, tmp_path: Path
) -> None:
    encoder = Encoder(tokenizer, reader)
    record = record_at(tmp_path)
    encoded = encoder.encode_now(record)
    assert encoded.image.grid == (1, 4, 6)
    expected = tokenizer.decode(encoder.request_token_ids).replace("<|image_pad|>", "<|image_pad|>" * 6)
    assert tokenizer.decode(encoded.prompt_token_ids) == expected
    assert (encoded.record, encoded.request_token_ids) == (record, encoder.request_token_ids)


@pytest.mark.parametrize("size", [(96, 64), (128, 128), (100, 333)])
def test_the_prompt_s_length_is_known_without_the_image(
    tokenizer: Any, reader: ImageReader, tmp_path: Path, size: tuple[int, int]
) -> None:
    encoder = Encoder(tokenizer, reader)
    record = record_at(tmp_path, *size)
    num_tokens = len(encoder.encode_now(record).prompt_token_ids)
    Path(record.images[0]).unlink()
    assert encoder.num_prompt_tokens(record.width, record.height) == num_tokens


def test_no_real_coordinate_stands_in_the_built_in_prompt(tokenizer: Any, reader: ImageReader) -> None:
    vocabulary = CoordinateVocabulary.from_tokenizer(tokenizer)
    assert not any(map(vocabulary.is_coordinate, Encoder(tokenizer, reader).request_token_ids))


def test_configured_texts_replace_the_built_in_ones(tokenizer: Any, reader: ImageReader) -> None:
    text = tokenizer.decode(Encoder(tokenizer, reader, system="Be brief.", user_prompt="Boxes?").request_token_ids)
    assert "system\nBe brief.<|im_end|>" in text
    assert "<|vision_end|>Boxes?<|im_end|>" in text
    without = tokenizer.decode(Encoder(tokenizer, reader, system="").request_token_ids)
    assert without.startswith("<|im_start|>user\n")


def test_a_placeholder_in_the_texts_is_refused(tokenizer: Any, reader: ImageReader) -> None:
    with pytest.raises(DataError, match=r"must hold <\|image_pad\|> once"):
        Encoder(tokenizer, reader, user_prompt="What is <|image_pad|>?")


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer: Any, reader: ImageReader) -> None:
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        Encoder(tokenizer, reader)


def test_a_record_s_classes_fill_the_prompt_and_its_own_prompt_replaces_it(
    tokenizer: Any, reader: ImageReader, tmp_path: Path
) -> None:
    encoder = Encoder(tokenizer, reader, user_prompt="Find {classes} as {JSON}.")
    plain = record_at(tmp_path)
    asked = {
        "Find cat, bow (weapon) as {JSON}.": replace(plain, classes=("cat", "bow (weapon)")),
        "Cats?": replace(plain, prompt="Cats?"),
    }
    for text, record in asked.items():
        encoded = encoder.encode_now(record)
        assert f"<|vision_end|>{text}<|im_end|>" in tokenizer.decode(encoded.request_token_ids)
        assert len(encoded.prompt_token_ids) == len(encoded.request_token_ids) - 1 + 6
        user_text = encoder.user_text(record)
        assert encoder.num_prompt_tokens(record.width, record.height, user_text) == len(encoded.prompt_token_ids)
    with pytest.raises(DataError, match=r"val:96: custom\.user_prompt has \{classes\} and the record has none; give"):
        encoder.encode_now(plain)


def test_equal_prompts_are_tokenised_once_and_few_are_remembered(
    tokenizer: Any, reader: ImageReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    monkeypatch.setattr("learner.data.encoding.chat_text", lambda *args: rendered.append(args[-1]) or chat_text(*args))
    monkeypatch.setattr("learner.data.encoding.MOST_TEXTS", 2)
    encoder, record = Encoder(tokenizer, reader, user_prompt="{classes}?"), record_at(tmp_path)
    for name in "aabaabcaca":
        encoder.encode_now(replace(record, classes=(name,)))
    assert rendered == ["{classes}?", "a?", "b?", "c?", "a?"]


async def test_records_are_encoded_side_by_side_and_alike(tokenizer: Any, reader: ImageReader, tmp_path: Path) -> None:
    encoder = Encoder(tokenizer, reader, num_workers=3)
    records = [record_at(tmp_path, 32 * width, 64) for width in range(1, 9)]
    encoded: dict[str, tuple[int, ...]] = {}

    async def encode(record: Record) -> None:
        encoded[record.record_id] = (await encoder.encode(record)).prompt_token_ids

    async with anyio.create_task_group() as tasks:
        for record in records:
            tasks.start_soon(encode, record)
    assert encoded == {record.record_id: encoder.encode_now(record).prompt_token_ids for record in records}


async def test_an_unusable_image_raises_out_of_the_worker(tokenizer: Any, reader: ImageReader, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val:9: .*gone\.png"):
        await Encoder(tokenizer, reader).encode(Record("val:9", (str(tmp_path / "gone.png"),), 9, 9, ()))


@pytest.mark.reported("object_ordering: random")
def test_each_ordering_of_objects_has_a_prompt_of_its_own() -> None:
    assert USER_PROMPTS.keys() == {"sorted", "random"}
    assert "top to bottom" in USER_PROMPTS["sorted"]
    assert "top to bottom" not in USER_PROMPTS["random"]


async def test_records_are_taken_as_there_is_room_for_them_and_handed_on_in_order(
    tokenizer: Any, reader: ImageReader, tmp_path: Path
) -> None:
    taken = 0

    def many() -> Iterator[Record]:
        nonlocal taken
        for width in range(64, 64 + 4 * MOST_ENCODED):
            taken += 1
            yield record_at(tmp_path, width)

    encoded = Encoder(tokenizer, reader, num_workers=4).encode_in_order(many())
    async with aclosing(encoded):
        for place in range(2 * MOST_ENCODED):
            assert (await anext(encoded)).record.width == 64 + place
            assert taken == place + MOST_ENCODED
