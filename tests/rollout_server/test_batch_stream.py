import asyncio
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import httpx
import pytest

from shared.framing import AnyLine, decode_lines
from shared.wire import (
    CancelReply,
    ErrorBody,
    InlineImage,
    PathImage,
    PolicyVersion,
    RolloutBatch,
    RolloutSample,
    Sibling,
    StreamError,
    StreamFooter,
    StreamHeader,
    StreamHeartbeat,
    StreamSample,
)

SMALL_BUFFER = 2**14
"""Bytes of a socket's buffer: a stream of answers does not fit in."""


async def ask(client: httpx.AsyncClient, batch: RolloutBatch) -> list[AnyLine]:
    """All lines but heartbeats, of which there are as many as the machine is slow."""
    async with client.stream("POST", "/rollouts", content=batch.model_dump_json()) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = decode_lines(response.aiter_bytes())
        return [line async for line in lines if not isinstance(line, StreamHeartbeat)]


async def refused(client: httpx.AsyncClient, batch: RolloutBatch) -> tuple[int, ErrorBody]:
    response = await client.post("/rollouts", content=batch.model_dump_json())
    return response.status_code, ErrorBody.model_validate_json(response.content)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - another thread's engine has no event to wait for
            await anyio.sleep(0.005)


async def test_every_sample_is_answered_once_between_header_and_footer(scripted, serving, prompts) -> None:
    with serving(scripted({"default": [3, 4, 7]})) as server:
        async with server.client() as client:
            header, *samples, footer = await ask(client, prompts.batch("a", "b", "c", "d", "e", "f"))
    assert header == StreamHeader(batch_id="b", policy_version=None, accepted=6)
    assert all(isinstance(line, StreamSample) for line in samples)
    assert Counter(line.uid for line in samples) == Counter("abcdef")
    assert {(line.token_ids, line.finish_reason) for line in samples} == {((3, 4, 7), "stop")}
    assert {(line.num_prompt_tokens, line.image_grid) for line in samples} == {(11, ((1, 4, 4),))}
    assert isinstance(footer, StreamFooter)
    assert (footer.finished, footer.failed, footer.generated_tokens) == (6, 0, 18)


async def test_siblings_share_a_prompt_and_are_answered_by_themselves(scripted, serving, prompts, image) -> None:
    batch = prompts.batch("a", "b")
    siblings = tuple(Sibling(uid=f"a#{number}", seed=number) for number in (1, 2))
    first, second = batch.samples
    broken = replace_image(second, b"no image").model_copy(update={"siblings": (Sibling(uid="b#1", seed=1),)})
    samples = (first.model_copy(update={"siblings": siblings}), broken)
    with serving(scripted({"default": [7], "answers": {"a#2": [9, 7]}})) as server:
        async with server.client() as client:
            header, *lines, footer = await ask(client, batch.model_copy(update={"samples": samples}))
            twice = batch.model_copy(update={"samples": (samples[0], samples[0].model_copy(update={"uid": "c"}))})
            assert (await refused(client, twice))[1].code == "duplicate_uid"
    assert isinstance(header, StreamHeader)
    assert header.accepted == 5
    answers = {line.uid: line.token_ids for line in lines if isinstance(line, StreamSample)}
    assert answers == {"a": (7,), "a#1": (7,), "a#2": (9, 7)}
    assert {line.uid for line in lines if isinstance(line, StreamError)} == {"b", "b#1"}
    assert isinstance(footer, StreamFooter)
    assert (footer.finished, footer.failed) == (3, 2)


async def test_a_finished_sample_is_sent_while_others_are_being_decoded(scripted, serving, prompts) -> None:
    with serving(scripted({"faults": {"slow": "hang"}})) as server:
        async with (
            server.client() as client,
            client.stream("POST", "/rollouts", content=prompts.batch("slow", "fast").model_dump_json()) as response,
        ):
            lines = decode_lines(response.aiter_bytes())
            with anyio.fail_after(60):
                while not isinstance(line := await anext(lines), StreamSample):
                    pass
                assert line.uid == "fast"
                heartbeat = await anext(lines)
            assert isinstance(heartbeat, StreamHeartbeat)
            assert heartbeat.running == 1


async def test_one_bad_sample_is_an_error_line_and_the_others_go_on(scripted, serving, prompts, image) -> None:
    good = prompts.batch("good").samples[0]
    bad = {
        "bad_image": {"images": (InlineImage(data=b"no image"),)},
        "bad_size": {"images": (InlineImage(data=image(0, 65, 64)),)},
        "unknown_id": {"prompt_token_ids": (*prompts.ids(), 10**6)},
        "no_image": {"images": ()},
        "video": {"prompt_token_ids": (*prompts.ids(), prompts.video_id)},
        "too_long": {"prompt_token_ids": (*prompts.ids(), *[9] * 300)},
        "a_path": {"images": (PathImage(path="a.png"),)},
    }
    samples = [good, *(good.model_copy(update={"uid": uid, **change}) for uid, change in bad.items())]
    batch = RolloutBatch(batch_id="b", sampling=prompts.sampling(), samples=tuple(samples))
    with serving(scripted()) as server:
        async with server.client() as client:
            lines = await ask(client, batch)
    codes = {line.uid: line.code for line in lines if isinstance(line, StreamError)}
    assert codes == {
        "bad_image": "bad_image",
        "bad_size": "bad_image",
        "unknown_id": "unknown_token_id",
        "no_image": "bad_placeholders",
        "video": "bad_placeholders",
        "too_long": "prompt_too_long",
        "a_path": "bad_image",
    }
    assert [line.uid for line in lines if isinstance(line, StreamSample)] == ["good"]
    assert (lines[-1].finished, lines[-1].failed) == (1, 7)


BROKEN_FILES = ("bomb", "avif", "dds", "empty", "cut", "text", "lies")


def broken_file(kind: str, good: bytes) -> bytes:
    """A file that makes Pillow raise something else than what others make it raise."""
    if kind == "bomb":  # 400 million pixels of one bit
        head = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(2501 * 20_000), 9)), (b"IEND", b"")]
        crc = zlib.crc32
        body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", crc(k + c)) for k, c in chunks)
        return b"\x89PNG\r\n\x1a\n" + body
    return {
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40),
        "dds": b"DDS " + struct.pack("<I", 124) + bytes(120),
        "empty": b"",
        "cut": good[: len(good) // 2],
        "text": b"<html>not found</html>",
        "lies": good.replace(b"IDAT", b"IDOT"),
    }[kind]


@pytest.mark.reported("vllm#55546 a 20000x20000 px PNG between two good samples")
async def test_broken_images_are_error_lines_between_good_answers(scripted, serving, prompts, image) -> None:
    batch = prompts.batch("first", *BROKEN_FILES, "last")
    samples = tuple(
        replace_image(sample, broken_file(sample.uid, image())) if sample.uid in BROKEN_FILES else sample
        for sample in batch.samples
    )
    with serving(scripted({"default": [7]})) as server:
        async with server.client() as client:
            _, *lines, footer = await ask(client, batch.model_copy(update={"samples": samples}))
    errors = {line.uid: line for line in lines if isinstance(line, StreamError)}
    assert errors.keys() == set(BROKEN_FILES)
    assert {line.code for line in errors.values()} == {"bad_image"}
    assert "20000x20000 px are more than" in errors["bomb"].message
    assert isinstance(footer, StreamFooter)
    assert (footer.finished, footer.failed) == (2, len(BROKEN_FILES))


def replace_image(sample: RolloutSample, data: bytes) -> RolloutSample:
    return sample.model_copy(update={"images": (InlineImage(data=data),)})


async def test_an_answer_with_logprobs_that_are_no_numbers_is_an_error_line(scripted, serving, prompts) -> None:
    """JSON has no word for them, and a line that cannot be read would end the learner's stream."""
    with serving(scripted({"default": [7], "faults": {"b": "nan"}})) as server:
        async with server.client() as client:
            batch = prompts.batch("a", "b", "c").model_copy(update={"return_logprobs": True})
            _, *lines, footer = await ask(client, batch)
    assert [(line.uid, line.code) for line in lines if isinstance(line, StreamError)] == [("b", "engine_error")]
    assert isinstance(footer, StreamFooter)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "link.png", "missing.png"])
async def test_a_path_cannot_leave_the_image_root(scripted, serving, prompts, image, tmp_path: Path, path: str) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "inside.png").write_bytes(image())
    (tmp_path / "secret.png").write_bytes(image())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    template = prompts.batch("x").samples[0]
    samples = tuple(
        template.model_copy(update={"uid": name, "images": (PathImage(path=name),)}) for name in ("inside.png", path)
    )
    with serving(scripted(image_root=root)) as server:
        async with server.client() as client:
            lines = await ask(client, RolloutBatch(batch_id="b", sampling=prompts.sampling(), samples=samples))
    assert [line.uid for line in lines if isinstance(line, StreamSample)] == ["inside.png"]
    assert [(line.uid, line.code) for line in lines if isinstance(line, StreamError)] == [(path, "bad_image")]


async def test_a_version_the_server_does_not_hold_is_a_conflict_that_tells_what_it_holds(
    scripted, serving, prompts
) -> None:
    wanted = PolicyVersion(incarnation="ab", step=3)
    with serving(scripted()) as server:
        async with server.client() as client:
            status, body = await refused(client, prompts.batch("a", policy_version=wanted))
    assert (status, body.code, body.policy_version) == (409, "policy_version", None)
    assert "ab@3" in body.message


async def test_too_much_at_once_is_refused_with_a_time_to_retry_and_comes_in_later(scripted, serving, prompts) -> None:
    settings = scripted({"seconds_per_token": 0.1})
    settings = replace(settings, limits=settings.limits.model_copy(update={"max_open_samples": 2}))
    with serving(settings) as server:
        async with server.client() as client:
            first = asyncio.create_task(ask(client, prompts.batch("a", "b", batch_id="one")))
            await until(lambda: server.engine.load().running == 2)
            response = await client.post("/rollouts", content=prompts.batch("c", batch_id="two").model_dump_json())
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert ErrorBody.model_validate_json(response.content).retryable
            assert len(await first) >= 4
            assert isinstance((await ask(client, prompts.batch("c", batch_id="two")))[-1], StreamFooter)
            status, body = await refused(client, prompts.batch("a", "b", "c"))
            assert (status, body.code, body.retryable) == (413, "batch_too_large", False)


async def test_a_batch_that_contradicts_itself_is_refused(scripted, serving, prompts) -> None:
    with serving(scripted({"faults": {"h": "hang"}})) as server:
        async with server.client() as client:
            assert (await refused(client, prompts.batch("a", "a")))[1].code == "duplicate_uid"
            assert (await refused(client, prompts.batch("a", wire_version=99)))[1].code == "wire_version"
            response = await client.post("/rollouts", content=b'{"batch_id": 3}')
            assert response.status_code == 400
            assert "batch_id" in ErrorBody.model_validate_json(response.content).message
            held = asyncio.create_task(ask(client, prompts.batch("h")))
            await until(lambda: server.engine.load().running == 1)
            assert (await refused(client, prompts.batch("a")))[1].code == "batch_id_in_use"
            await client.delete("/rollouts/b")
            await held


async def test_a_deleted_batch_ends_with_an_error_line_for_each_open_sample(scripted, serving, prompts) -> None:
    with serving(scripted({"faults": {"h1": "hang", "h2": "hang"}})) as server:
        async with server.client() as client:
            held = asyncio.create_task(ask(client, prompts.batch("h1", "a", "h2")))
            await until(lambda: server.engine.load().running == 2)
            reply = CancelReply.model_validate_json((await client.delete("/rollouts/b")).content)
            lines = await held
            assert (await client.delete("/rollouts/b")).status_code == 404
        assert server.engine.load().running == 0
    assert reply.cancelled == 2
    assert {line.uid: line.code for line in lines if isinstance(line, StreamError)} == {
        "h1": "cancelled",
        "h2": "cancelled",
    }
    assert (lines[-1].finished, lines[-1].failed) == (1, 2)


async def test_a_client_that_goes_away_frees_the_engine_and_its_place(scripted, serving, prompts) -> None:
    with serving(scripted({"faults": {"h": "hang"}}, heartbeat_s=60.0)) as server:
        async with server.client() as client:
            async with client.stream("POST", "/rollouts", content=prompts.batch("h").model_dump_json()) as response:
                lines = decode_lines(response.aiter_bytes())
                assert isinstance(await anext(lines), StreamHeader)
                await until(lambda: server.engine.load().running == 1)
            await until(lambda: server.engine.load().running == 0)
            metrics = (await client.get("/metrics")).text
    assert "boxloop_server_open_samples 0.0" in metrics


async def test_a_reader_that_does_not_read_stops_neither_the_engine_nor_anybody_else(
    scripted, serving, prompts
) -> None:
    answer = list(range(8, 19)) * 18
    uids = [f"{index:04d}" for index in range(300)]
    body = prompts.batch(*uids, sampling=prompts.sampling(198), return_logprobs=True).model_dump_json()
    small = httpx.AsyncHTTPTransport(socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)])
    with serving(scripted({"default": answer}), send_buffer=SMALL_BUFFER) as server:
        before = server.engine.load().generated_tokens
        async with (
            server.client(transport=small) as slow,
            server.client() as client,
            slow.stream("POST", "/rollouts", content=body) as response,
        ):
            chunks = response.aiter_raw()
            await anext(chunks)
            await until(lambda: server.engine.load().generated_tokens - before == 300 * 198)
            await until(lambda: server.engine.load().running == 0)
            others = await ask(client, prompts.batch("a", "b", batch_id="other"))
            assert [type(line) for line in others[1:]] == [StreamSample, StreamSample, StreamFooter]
            assert (await client.get("/health/")).status_code == 200
            assert "boxloop_server_open_samples 300.0" in (await client.get("/metrics")).text
            received = b"".join([chunk async for chunk in chunks])
    # Linux doubles what is asked for, and asyncio keeps 64 KiB: far less than what was finished and not read.
    assert len(received) > 3 * (2 * SMALL_BUFFER + 2 * SMALL_BUFFER + 2**16)
    assert b'"type":"footer","finished":300' in received[-500:]


async def test_a_dead_engine_answers_what_is_open_and_takes_nothing_more(scripted, serving, prompts) -> None:
    script = {"faults": {"killer": "die", "victim": "hang"}, "delays": {"killer": 0.05}}
    with serving(scripted(script)) as server:
        async with server.client() as client:
            lines = await ask(client, prompts.batch("victim", "killer"))
            assert {line.uid: line.retryable for line in lines if isinstance(line, StreamError)} == {
                "killer": True,
                "victim": True,
            }
            assert (await client.get("/health/")).status_code == 503
            assert (await refused(client, prompts.batch("a")))[0] == 503


async def test_a_stream_beyond_its_time_is_cut_without_a_footer(scripted, serving, prompts) -> None:
    with serving(scripted({"faults": {"h": "hang"}}, max_stream_s=0.2)) as server:
        async with server.client() as client:
            started = time.monotonic()
            with pytest.raises(httpx.RemoteProtocolError):
                await ask(client, prompts.batch("h"))
        assert time.monotonic() - started < 60
        assert server.engine.load().running == 0
