import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared import weight_wire, wire
from shared.wire import InlineImage, RolloutBatch, RolloutSample, Sampling, WireModel

GOLDEN_BATCH = (
    '{"wire_version":5,"batch_id":"b1","policy_version":{"incarnation":"ab","step":7},'
    '"sampling":{"max_new_tokens":16,"temperature":0.0,"top_p":1.0,"top_k":0,"repetition_penalty":1.0,'
    '"stop_token_ids":[5],"banned_token_ids":[],"repeat_terminate":null,"stop_decision":null},'
    '"samples":[{"uid":"train:1#0","prompt_token_ids":[1,2],"images":[{"kind":"inline","data":"-_8A"}],"seed":0,'
    '"siblings":[{"uid":"train:1#1","seed":5}]}],'
    '"return_logprobs":false}'
)


@given(st.binary(max_size=64))
def test_image_bytes_arrive_as_they_were_sent(data: bytes) -> None:
    image = InlineImage(data=data)
    assert InlineImage.model_validate_json(image.model_dump_json()).data == data


def test_standard_base64_is_read_too() -> None:
    assert InlineImage.model_validate_json('{"kind":"inline","data":"+/8A"}').data == b"\xfb\xff\x00"


def test_a_batch_is_written_as_another_peer_of_this_version_reads_it() -> None:
    batch = RolloutBatch.model_validate_json(GOLDEN_BATCH)
    assert batch.uids == ("train:1#0", "train:1#1")
    assert [answer.seed for answer in batch.samples[0].answers] == [0, 5]
    assert batch.samples[0].images[0].data == b"\xfb\xff\x00"
    assert batch.model_dump_json() == GOLDEN_BATCH


def test_an_unknown_field_is_refused_by_every_body() -> None:
    bodies = {**vars(wire), **vars(weight_wire)}.values()
    models = [item for item in bodies if isinstance(item, type) and issubclass(item, WireModel)]
    assert len(models) > 20
    for model in models:
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            model.model_validate({"surprise": 1})


def test_a_batch_needs_samples_and_a_sample_a_prompt() -> None:
    sampling = Sampling(max_new_tokens=1, stop_token_ids=())
    with pytest.raises(ValidationError, match="samples"):
        RolloutBatch(batch_id="b", sampling=sampling, samples=())
    with pytest.raises(ValidationError, match="prompt_token_ids"):
        RolloutSample(uid="a", prompt_token_ids=())


@pytest.mark.parametrize("temperature", [0.0, 0.01, 0.7])
def test_a_temperature_is_taken_that_every_engine_keeps(temperature: float) -> None:
    assert Sampling(max_new_tokens=1, stop_token_ids=(), temperature=temperature).temperature == temperature


@pytest.mark.parametrize("temperature", [-1.0, 1e-6, 0.0099])
def test_a_temperature_that_an_engine_would_change_is_refused(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        Sampling(max_new_tokens=1, stop_token_ids=(), temperature=temperature)


def test_no_more_ids_are_banned_than_every_engine_takes() -> None:
    assert Sampling(max_new_tokens=1, stop_token_ids=(), banned_token_ids=tuple(range(1024)))
    with pytest.raises(ValidationError, match="at most 1024"):
        Sampling(max_new_tokens=1, stop_token_ids=(), banned_token_ids=tuple(range(1025)))


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e400", "1e-300"])
@pytest.mark.parametrize("key", ["temperature", "top_p", "repetition_penalty"])
@pytest.mark.reported("JSON Infinity")
def test_no_number_that_32_bits_do_not_hold_reaches_an_engine(key: str, number: str) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate_json(f'{{"max_new_tokens": 1, "stop_token_ids": [], "{key}": {number}}}')
