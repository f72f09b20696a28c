"""What every engine promises (rollout_server/engines/base.py), asked of each."""

import io
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from importlib.util import find_spec
from pathlib import Path

import anyio
import numpy as np
import orjson
import pytest
import pytest_asyncio
import torch
from PIL import Image
from safetensors.torch import save_file

from rollout_server.engines.base import Engine, EngineAnswer, EngineFailure, EngineRequest, EngineResult, WeightFile
from rollout_server.engines.table import build_engine
from rollout_server.settings import EngineName, ServerSettings, limits_for
from rollout_server.weights.service import check_canary
from shared.errors import EngineFailed
from shared.wire import RepeatTerminate, Sampling, StopDecision

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENGINES = (
    "hf",
    "scripted",
    pytest.param(
        "vllm",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
            pytest.mark.filterwarnings("default"),  # its core is a fork that keeps the filters of this process
        ],
    ),
)
TEXT_IDS = (20, 21, 22)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from learner.model.tiny import build_tiny

    directory = tmp_path_factory.mktemp("tiny")
    build_tiny(directory)
    return directory


@pytest_asyncio.fixture(params=ENGINES, scope="module", loop_scope="module")
async def engine(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engine]:
    """One engine for all tests of a kind; each leaves it idle."""
    script = tmp_path_factory.mktemp("script") / "script.json"
    script.write_bytes(orjson.dumps({"default": [30], "seconds_per_token": 0.0005}))
    built = build_engine(ServerSettings(str(checkpoint), request.param, limits_for(256, 4), script=script))
    await built.start()
    yield built
    await built.close()


@pytest.fixture(scope="module")
def image_prompt(checkpoint: Path) -> tuple[int, ...]:
    config = orjson.loads((checkpoint / "config.json").read_bytes())
    return (config["vision_start_token_id"], config["image_token_id"], config["vision_end_token_id"], *TEXT_IDS)


def png(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(data, "PNG")
    return data.getvalue()


def text_request(uid: str, max_new_tokens: int = 8, **options: object) -> EngineRequest:
    return EngineRequest(uid, TEXT_IDS, (), Sampling(max_new_tokens=max_new_tokens, stop_token_ids=(), **options))


async def results(engine: Engine, requests: Sequence[EngineRequest]) -> list[EngineResult]:
    async with aclosing(engine.generate(requests)) as stream:
        return [result async for result in stream]


async def idle(engine: Engine) -> None:
    with anyio.fail_after(5):
        while engine.load().running or engine.load().waiting:  # noqa: ASYNC110 - it may run on another thread
            await anyio.sleep(0.002)


async def test_every_request_is_answered_exactly_once_however_many_fit_at_a_time(engine: Engine) -> None:
    answered = await results(engine, [text_request(f"r{index}", 2 + index) for index in range(11)])
    assert Counter(answer.uid for answer in answered) == Counter(f"r{index}" for index in range(11))
    lengths = {answer.uid: len(answer.token_ids) for answer in answered if isinstance(answer, EngineAnswer)}
    assert lengths == {f"r{index}": 2 + index for index in range(11)}
    assert {answer.finish_reason for answer in answered} == {"length"}
    await idle(engine)


async def test_an_ending_is_biased_where_it_is_decided_on(engine: Engine) -> None:
    """A bias just under the margin that is told leaves the answer as it is; one just above turns it there."""
    if "stop_decision" not in engine.capabilities:
        pytest.skip("this engine biases nothing")

    async def decode(decision: StopDecision | None) -> EngineAnswer:
        (answer,) = await results(engine, [text_request("r", 8, stop_decision=decision)])
        assert isinstance(answer, EngineAnswer)
        return answer

    tokens = (await decode(None)).token_ids
    at = max(place for place in range(2, 8) if tokens.count(tokens[place - 2]) == 1)
    nowhere = (TEXT_IDS[0],) * 9
    cases = {
        0: {"at_start": tokens[:1], "behind_coordinate": nowhere, "coordinate_ids": (TEXT_IDS[0],)},
        3: {"at_start": tokens[:4], "behind_coordinate": nowhere, "coordinate_ids": (TEXT_IDS[0],)},
        at: {"at_start": nowhere, "behind_coordinate": tokens[at - 1 : at + 1], "coordinate_ids": (tokens[at - 2],)},
    }
    for place, ids in cases.items():
        told = await decode(StopDecision(bias=0, **ids))
        ((decided_at, margin),) = told.stop_margins
        assert (told.token_ids, decided_at) == (tokens, place)
        assert 0 <= margin < 6.9
        kept = await decode(StopDecision(bias=margin - 0.01, **ids))
        turned = await decode(StopDecision(bias=margin + 0.01, **ids))
        assert (kept.token_ids, turned.token_ids[:place]) == (tokens, tokens[:place])
        assert turned.token_ids[place] != tokens[place]
        assert turned.stop_margins[0] == pytest.approx((place, margin), abs=1e-4)
    assert (await decode(None)).stop_margins == ()


async def test_an_ending_that_stands_nowhere_else_is_biased_too(engine: Engine) -> None:
    if "stop_decision" not in engine.capabilities:
        pytest.skip("this engine biases nothing")
    (plain,) = await results(engine, [text_request("r", 1)])
    first = plain.token_ids[0]
    ids = {"at_start": (first,), "behind_coordinate": (first,), "coordinate_ids": (first,), "stands_alone": True}
    (told,) = await results(engine, [text_request("r", 1, stop_decision=StopDecision(bias=0, **ids))])
    bias = told.stop_margins[0][1] + 0.01
    (turned,) = await results(engine, [text_request("r", 1, stop_decision=StopDecision(bias=bias, **ids))])
    assert (told.token_ids, turned.token_ids != (first,)) == ((first,), True)


async def test_calls_side_by_side_get_their_own_answers(engine: Engine) -> None:
    got: dict[str, list[str]] = {}

    async def call(name: str) -> None:
        got[name] = sorted(r.uid for r in await results(engine, [text_request(f"{name}{i}") for i in range(5)]))

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(call, name)
    assert got == {name: [f"{name}{i}" for i in range(5)] for name in "abc"}


async def test_a_short_answer_does_not_wait_for_a_long_one(engine: Engine) -> None:
    async with aclosing(engine.generate([text_request("long", 200), text_request("short", 2)])) as stream:
        assert (await anext(stream)).uid == "short"
        assert engine.load().running
        assert (await anext(stream)).uid == "long"


async def test_an_answer_ends_with_its_stop_id(engine: Engine) -> None:
    said = (await results(engine, [text_request("a")]))[0].token_ids
    stop = said[-1]
    sampling = Sampling(max_new_tokens=8, stop_token_ids=(stop,))
    answer = (await results(engine, [EngineRequest("b", TEXT_IDS, (), sampling)]))[0]
    assert answer.finish_reason == "stop"
    assert answer.token_ids == said[: said.index(stop) + 1]


async def test_a_loop_is_ended(engine: Engine, checkpoint: Path, tmp_path: Path) -> None:
    zeros = {name: torch.zeros(shape) for name, shape in engine.tensors().shapes.items()}
    save_file(zeros, tmp_path / "zeros.safetensors")
    limits = RepeatTerminate(max_consecutive_token_repeats=3)
    # With these every token is as likely: the first is said.
    await engine.load_weights(WeightFile(tmp_path / "zeros.safetensors"))
    try:
        answer = (await results(engine, [text_request("a", 50, repeat_terminate=limits)]))[0]
    finally:
        await engine.load_weights(WeightFile(checkpoint / "model.safetensors"))
    assert answer.finish_reason == "repetition"
    assert len(answer.token_ids) == 3
    assert len(set(answer.token_ids)) == 1


async def test_a_prompt_is_measured_after_its_images_have_grown(engine: Engine, image_prompt: tuple[int, ...]) -> None:
    request = EngineRequest("a", image_prompt, (png(96, 64),), Sampling(max_new_tokens=2, stop_token_ids=()))
    answer = (await results(engine, [request]))[0]
    assert isinstance(answer, EngineAnswer)
    assert answer.image_grid == ((1, 4, 6),)
    assert answer.num_prompt_tokens == len(image_prompt) - 1 + 6


async def test_bad_requests_fail_alone(engine: Engine, image_prompt: tuple[int, ...]) -> None:
    sampling = Sampling(max_new_tokens=4, stop_token_ids=())
    bad = {
        "an id": ("unknown_token_id", (10**6,), ()),
        "no image": ("bad_placeholders", image_prompt, ()),
        "no png": ("bad_image", image_prompt, (b"GIF89a",)),
        "201 to 1": ("bad_image", image_prompt, (png(6432, 32),)),
        "1 to 201": ("bad_image", image_prompt, (png(32, 6432),)),
        "many words": ("prompt_too_long", TEXT_IDS * 100, ()),
        "a large image": ("prompt_too_long", image_prompt, (png(512, 512),)),
    }
    asked = [EngineRequest(uid, ids, images, sampling) for uid, (_, ids, images) in bad.items()]
    good = [text_request("good", 253), EngineRequest("200 to 1", image_prompt, (png(6400, 32),), sampling)]
    got = {result.uid: result for result in await results(engine, [*asked, text_request("room", 254), *good])}
    assert all(isinstance(got.pop(request.uid), EngineAnswer) for request in good)
    expected = {uid: code for uid, (code, _, _) in bad.items()} | {"room": "prompt_too_long"}
    assert {uid: failure.code for uid, failure in got.items() if isinstance(failure, EngineFailure)} == expected


async def test_logprobs_come_when_asked_for_one_a_token(engine: Engine) -> None:
    plain = text_request("plain")
    asked = EngineRequest("asked", TEXT_IDS, (), plain.sampling, return_logprobs=True)
    got = {answer.uid: answer for answer in await results(engine, [plain, asked])}
    assert got["plain"].token_logprobs is None
    assert len(got["asked"].token_logprobs) == len(got["asked"].token_ids)
    assert all(logprob <= 0 for logprob in got["asked"].token_logprobs)


async def test_times_are_in_order(engine: Engine) -> None:
    for answer in await results(engine, [text_request(f"r{index}") for index in range(6)]):
        assert 0 < answer.started_at <= answer.first_token_at <= answer.finished_at


async def test_closing_the_generator_stops_the_work(engine: Engine) -> None:
    before = engine.load().generated_tokens
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(
            aclosing(engine.generate([text_request("a", 1), *(text_request(f"l{i}", 250) for i in range(9))]))
        )
        await anext(stream)
        assert engine.load().running
    await idle(engine)
    stopped = engine.load().generated_tokens
    assert stopped - before < 9 * 250
    await anyio.sleep(0.3)  # the long ones would go on for longer
    assert engine.load().generated_tokens == stopped
    assert len(await results(engine, [text_request("after")])) == 1


@pytest.mark.parametrize("num_read", range(5))
async def test_a_call_that_is_closed_early_ends_quietly(engine: Engine, num_read: int) -> None:
    """Its other answers are done by then, and wait for their reader."""
    async with aclosing(engine.generate([text_request(f"r{index}", 1) for index in range(5)])) as stream:
        for _ in range(num_read):
            await anext(stream)
        await anyio.sleep(0.05)
    await idle(engine)


async def test_the_canary_sings(engine: Engine) -> None:
    await check_canary(engine)


async def test_its_own_checkpoint_is_a_full_update(engine: Engine, checkpoint: Path, tmp_path: Path) -> None:
    before = (await results(engine, [text_request("a")]))[0].token_ids
    file = shutil.copy(checkpoint / "model.safetensors", tmp_path / "weights.safetensors")
    await engine.load_weights(WeightFile(Path(file)))
    assert (await results(engine, [text_request("a")]))[0].token_ids == before


@pytest.mark.parametrize("name", ENGINES)
async def test_an_engine_that_has_not_started_is_live_and_takes_nothing(name: EngineName, checkpoint: Path) -> None:
    built = build_engine(ServerSettings(str(checkpoint), name, limits_for(256, 4)))
    health = built.health()
    assert (health.live, health.ready) == (True, False)
    assert health.reason
    assert built.load().running == 0
    with pytest.raises(EngineFailed):
        await results(built, [text_request("a")])
    await built.close()
