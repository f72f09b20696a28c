"""One rollout server, asked over a real socket."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace

import anyio
import httpx
import pytest

from learner.servers.rollouts import RolloutServer, wire_samples
from learner.servers.stall import watch_progress
from learner.types import LostSample, Rollout, RolloutRequest
from shared.errors import PromptMismatch, ProtocolError, ServerUnavailable, VersionConflict
from shared.framing import AnyLine, encode_line
from shared.wire import PolicyVersion, Sampling, StreamFooter, StreamHeader, StreamHeartbeat, StreamSample

RequestsOf = Callable[[int], list[RolloutRequest]]
STALL_S = 5.0


async def decoded(
    client: httpx.AsyncClient, requests: list[RolloutRequest], sampling: Sampling, **options: object
) -> list[Rollout | LostSample]:
    version = options.pop("version", None)
    server = RolloutServer(client, **{"stall_timeout_s": STALL_S, **options})
    async with aclosing(server.decode("batch", requests, sampling, version)) as results:
        return [result async for result in results]


async def test_every_request_comes_back_with_its_own_answer(serving, scripted, requests_of, sampling) -> None:
    requests = requests_of(3)
    answers = {"data:1": [30, 31], "data:2": [40, 7], "data:3": [7]}
    with serving(scripted({"answers": answers})) as running:
        async with running.client() as client:
            got = {result.request.uid: result for result in await decoded(client, requests, sampling)}
    assert {uid: result.token_ids for uid, result in got.items()} == {
        "data:1": (30, 31, 30, 31, 30, 31),
        "data:2": (40, 7),
        "data:3": (7,),
    }
    assert {uid: result.finish_reason for uid, result in got.items()} == {
        "data:1": "length",
        "data:2": "stop",
        "data:3": "stop",
    }
    assert got["data:2"].request is requests[1]


async def test_answers_to_one_record_ask_for_its_image_once(serving, scripted, requests_of, sampling) -> None:
    plain = requests_of(2)
    requests = [replace(each, seed=10 + number, sample=number) for each in plain for number in range(3)]
    samples = wire_samples(requests)
    assert [sample.uid for sample in samples] == ["data:1#0", "data:2#0"]
    assert [[answer.seed for answer in sample.answers] for sample in samples] == [[10, 11, 12]] * 2
    assert len(wire_samples([plain[0], replace(plain[0], repeat=1)])) == 2
    with serving(scripted({"default": [7], "answers": {"data:2#1": [40, 7]}})) as running:
        async with running.client() as client:
            got = {result.request.uid: result for result in await decoded(client, requests, sampling)}
    assert got.keys() == {request.uid for request in requests}
    assert got["data:2#1"].token_ids == (40, 7)
    assert got["data:2#1"].request is requests[4]


async def test_an_answer_arrives_while_others_are_still_decoded(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"delays": {"data:1": 30}})) as running:
        async with running.client() as client:
            server = RolloutServer(client, STALL_S)
            async with aclosing(server.decode("b", requests_of(2), sampling, None)) as results:
                first = await anext(results)
                assert first.request.uid == "data:2"
                assert running.engine.load().running == 1
            with anyio.fail_after(5):
                while running.engine.load().running:  # noqa: ASYNC110 - the server runs on another thread
                    await anyio.sleep(0.01)
            assert (await client.get("/ready/")).status_code == 200


async def test_a_bad_sample_is_lost_alone(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"faults": {"data:2": "error"}})) as running:
        async with running.client() as client:
            got = {result.request.uid: result for result in await decoded(client, requests_of(3), sampling)}
    lost = got.pop("data:2")
    assert isinstance(lost, LostSample)
    assert (lost.code, lost.retryable) == ("engine_error", True)
    assert all(isinstance(result, Rollout) for result in got.values())
    assert len(got) == 2


async def test_a_stream_that_is_cut_says_how_much_is_missing(serving, scripted, requests_of, sampling) -> None:
    script = {"delays": {"data:1": 30, "data:3": 30}}
    with serving(scripted(script, max_stream_s=0.3)) as running:
        async with running.client() as client:
            with pytest.raises(ServerUnavailable, match=r"2 samples unanswered|broke off"):
                await decoded(client, requests_of(3), sampling)


async def test_two_views_of_a_prompt_are_an_error_with_both(serving, scripted, requests_of, sampling) -> None:
    (request,) = requests_of(1)
    ids = request.encoded.prompt_token_ids
    other = replace(request.encoded, prompt_token_ids=(*ids, 20), image=replace(request.encoded.image, grid=(1, 2, 6)))
    with serving(scripted()) as running:
        async with running.client() as client:
            with pytest.raises(PromptMismatch) as raised:
                await decoded(client, [replace(request, encoded=other)], sampling)
    for part in ("data:1", f"{len(ids) + 1} tokens", f"to {len(ids)} with", "((1, 2, 6),)", "((1, 4, 4),)"):
        assert part in str(raised.value)


async def test_other_weights_than_asked_for_are_a_conflict(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted()) as running:
        async with running.client() as client:
            with pytest.raises(VersionConflict, match="learner@3, held is None"):
                await decoded(client, requests_of(1), sampling, version=PolicyVersion(incarnation="learner", step=3))


async def test_a_server_that_has_work_and_gives_no_token_is_given_up(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"faults": {"data:2": "hang"}})) as running:
        async with running.client() as client:
            started = time.monotonic()
            with pytest.raises(ServerUnavailable, match=r"stall_timeout_s 0\.3"):
                await decoded(client, requests_of(2), sampling, stall_timeout_s=0.3)
            assert time.monotonic() - started < 5


async def test_a_slow_server_is_waited_for(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"seconds_per_token": 0.15})) as running:
        async with running.client() as client:
            assert len(await decoded(client, requests_of(2), sampling, stall_timeout_s=0.5)) == 2


async def test_a_batch_may_be_given_a_time(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"seconds_per_token": 0.2})) as running:
        async with running.client() as client:
            with pytest.raises(ServerUnavailable, match=r"infer_timeout_s 0\.4"):
                await decoded(client, requests_of(1), sampling, infer_timeout_s=0.4)


async def test_a_server_that_is_not_there_is_unavailable(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted()) as running:
        client = running.client()
    async with client:
        with pytest.raises(ServerUnavailable, match=running.url):
            await decoded(client, requests_of(1), sampling)
        with pytest.raises(ServerUnavailable, match=running.url):
            await RolloutServer(client, STALL_S).info()


async def test_the_token_is_sent(serving, scripted, requests_of, sampling) -> None:
    token = "t" * 32
    with serving(scripted(token=token)) as running:
        async with running.client(headers={"authorization": f"Bearer {token}"}) as client:
            assert len(await decoded(client, requests_of(1), sampling)) == 1
            assert (await RolloutServer(client, STALL_S).info()).engine == "scripted"
        async with running.client() as client:
            with pytest.raises(ProtocolError, match="401"):
                await decoded(client, requests_of(1), sampling)


def stream(lines: Iterable[AnyLine]) -> httpx.AsyncClient:
    """A client whose every request is answered by these lines."""
    body = b"".join(map(encode_line, lines))
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    return httpx.AsyncClient(base_url="http://made.up", transport=transport)


def header(accepted: int) -> StreamHeader:
    return StreamHeader(batch_id="b", policy_version=None, accepted=accepted)


def sample(uid: str) -> StreamSample:
    times = {"queue_s": 0.0, "first_token_s": 0.0, "done_s": 0.0}
    shape = {"num_prompt_tokens": 0, "image_grid": ()}
    return StreamSample(uid=uid, token_ids=(1,), finish_reason="stop", policy_version=None, **shape, **times)


FOOTER = StreamFooter(finished=1, failed=0, generated_tokens=1, seconds=0.0)


async def test_an_answer_that_nobody_asked_for_breaks_the_contract(requests_of: RequestsOf, sampling: Sampling) -> None:
    async with stream([header(1), sample("other"), FOOTER]) as client:
        with pytest.raises(ProtocolError, match="'other'"):
            await decoded(client, requests_of(1), sampling)


async def test_a_batch_taken_in_part_breaks_the_contract(requests_of: RequestsOf, sampling: Sampling) -> None:
    async with stream([header(1), FOOTER]) as client:
        with pytest.raises(ProtocolError, match="accepted 1 of 2"):
            await decoded(client, requests_of(2), sampling)


async def test_a_footer_before_the_last_answer_is_a_cut(requests_of: RequestsOf, sampling: Sampling) -> None:
    async with stream([header(1), FOOTER]) as client:
        with pytest.raises(ServerUnavailable, match="1 samples unanswered"):
            await decoded(client, requests_of(1), sampling)


async def test_lines_that_wait_for_their_reader_are_no_stall() -> None:
    async def heartbeats() -> AsyncGenerator[AnyLine, None]:
        for _ in range(4):
            yield StreamHeartbeat(running=1, waiting=0, generated_tokens=5)

    seen = Counter[str]()
    async for line in watch_progress(heartbeats(), "a server", stall_timeout_s=0.05, infer_timeout_s=None):
        await anyio.sleep(0.03)
        seen[line.type] += 1
    assert seen == {"heartbeat": 4}


@pytest.mark.parametrize("running", [0, 1])
async def test_a_request_that_the_engine_has_lost_is_a_stall_too(running: int) -> None:
    async def heartbeats() -> AsyncGenerator[AnyLine, None]:
        while True:
            await anyio.sleep(0.02)
            yield StreamHeartbeat(running=running, waiting=0, generated_tokens=5)

    with anyio.fail_after(5), pytest.raises(ServerUnavailable, match="owes answers"):
        async for _ in watch_progress(heartbeats(), "a server", stall_timeout_s=0.2, infer_timeout_s=None):
            pass
