"""Several servers as one pool."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import orjson
import pytest
import yaml

from learner.decoding.pool import RolloutPool
from learner.servers.rollouts import RolloutServer
from learner.types import EncodedRecord, LostSample, Rollout, RolloutRequest
from rollout_server.settings import limits_for
from shared.errors import PromptMismatch, ProtocolError, ServerUnavailable
from shared.wire import PolicyVersion, Sampling

STALL_S = 5.0
Result = Rollout | LostSample


class Servers:
    """Clients of a few servers, as a pool."""

    def __init__(self, clients: list[httpx.AsyncClient], stall_timeout_s: float = STALL_S) -> None:
        self.servers = [RolloutServer(client, stall_timeout_s) for client in clients]

    async def decoded(
        self, requests: list[RolloutRequest], sampling: Sampling, version: PolicyVersion | None = None, **limits: Any
    ) -> list[Result]:
        pool = RolloutPool(self.servers, sampling, **limits)
        with anyio.fail_after(20):
            async with aclosing(pool.decode(requests, version)) as results:
                return [result async for result in results]


CANARY_TOKENS = 1


def generated(running: object) -> int:
    """Tokens that it was asked for; the canary at its start is not counted."""
    return running.engine.load().generated_tokens - CANARY_TOKENS  # type: ignore[attr-defined]


async def test_work_is_spread_by_outstanding_tokens(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted()) as a, serving(scripted()) as b:
        async with a.client() as to_a, b.client() as to_b:
            results = await Servers([to_a, to_b]).decoded(requests_of(6), sampling)
            assert Counter(result.request.uid for result in results) == Counter(f"data:{n}" for n in range(1, 7))
            assert (generated(a), generated(b)) == (18, 18)


async def test_a_long_prompt_weighs_more_than_a_short_one(serving, scripted, requests_of, sampling) -> None:
    long, *short = requests_of(5)
    ids = long.encoded.request_token_ids + (20,) * 100
    expanded = long.encoded.prompt_token_ids + (20,) * 100
    long = replace(long, encoded=EncodedRecord(long.encoded.record, ids, expanded, long.encoded.image))
    with serving(scripted()) as a, serving(scripted()) as b:
        async with a.client() as to_a, b.client() as to_b:
            await Servers([to_a, to_b]).decoded([long, *short], sampling)
            assert (generated(a), generated(b)) == (6, 24)


async def test_a_cut_stream_is_taken_up_by_the_other_server(serving, scripted, requests_of, sampling) -> None:
    slow = scripted({"delays": {"data:3": 30, "data:5": 30}}, max_stream_s=0.4)
    with serving(slow) as a, serving(scripted()) as b:
        async with a.client() as to_a, b.client() as to_b:
            results = await Servers([to_a, to_b]).decoded(requests_of(6), sampling)
    assert Counter(result.request.uid for result in results) == Counter(f"data:{n}" for n in range(1, 7))
    assert all(isinstance(result, Rollout) for result in results)


async def test_an_engine_that_dies_costs_no_sample(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"faults": {"data:3": "die"}})) as a, serving(scripted({})) as b:
        async with a.client() as to_a, b.client() as to_b:
            results = await Servers([to_a, to_b]).decoded(requests_of(6), sampling)
    assert Counter(result.request.uid for result in results) == Counter(f"data:{n}" for n in range(1, 7))
    assert all(isinstance(result, Rollout) for result in results)


async def test_a_retryable_error_is_tried_once_more_and_then_lost(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"faults": {"data:2": "error"}})) as running:
        async with running.client() as client:
            results = await Servers([client]).decoded(requests_of(3), sampling)
    assert Counter(result.request.uid for result in results) == Counter(f"data:{n}" for n in range(1, 4))
    (lost,) = (result for result in results if isinstance(result, LostSample))
    assert (lost.request.uid, lost.code) == ("data:2", "engine_error")


async def test_an_error_that_stays_is_not_retried(serving, scripted, requests_of, sampling) -> None:
    first, second = requests_of(2)
    broken = replace(first.encoded, image=replace(first.encoded.image, png=b"GIF89a"))
    with serving(scripted()) as running:
        async with running.client() as client:
            results = await Servers([client]).decoded([replace(first, encoded=broken), second], sampling)
    assert {result.request.uid: getattr(result, "code", "") for result in results} == {
        "data:1": "bad_image",
        "data:2": "",
    }


async def test_no_server_left_names_the_last_failure(serving, scripted, requests_of, sampling) -> None:
    with serving(scripted({"delays": {"data:2": 30}}, max_stream_s=0.3)) as running:
        async with running.client() as client:
            with pytest.raises(ServerUnavailable, match=f"(?s)no rollout server is left for 1 samples.*{running.url}"):
                await Servers([client]).decoded(requests_of(2), sampling)
    with pytest.raises(ServerUnavailable, match="none was configured"):
        await Servers([]).decoded(requests_of(1), sampling)


async def test_an_error_of_the_contract_ends_the_whole_call(serving, scripted, requests_of, sampling) -> None:
    first, *others = requests_of(4)
    longer = replace(first.encoded, prompt_token_ids=(*first.encoded.prompt_token_ids, 20))
    slow = {f"data:{number}": 30 for number in range(1, 5)}
    with serving(scripted()) as a, serving(scripted({"delays": slow})) as b:
        async with a.client() as to_a, b.client() as to_b:
            with pytest.raises(PromptMismatch):
                await Servers([to_a, to_b]).decoded([replace(first, encoded=longer), *others], sampling)
            await until(lambda: b.engine.load().running == 0)


async def test_leaving_early_cancels_on_every_server(serving, scripted, requests_of, sampling) -> None:
    slow = {f"data:{number}": 30 for number in range(2, 7)}
    with ExitStack() as stack:
        running = [stack.enter_context(serving(scripted({"delays": slow}))) for _ in range(2)]
        async with AsyncExitStack() as clients:
            to_each = [await clients.enter_async_context(each.client()) for each in running]
            pool = RolloutPool(Servers(to_each).servers, sampling)
            async with aclosing(pool.decode(requests_of(6), None)) as results:
                assert (await anext(results)).request.uid == "data:1"
                await until(lambda: sum(each.engine.load().running for each in running) == 5)
            await until(lambda: sum(each.engine.load().running for each in running) == 0)


class PromptServer:
    """Stands for a server whose next answers are read from its socket in the very turn in which `arrive` is set."""

    name, account = "in this process", None

    def __init__(self) -> None:
        self.arrive = anyio.Event()

    async def decode(
        self, batch_id: str, requests: tuple[RolloutRequest, ...], *_: object
    ) -> AsyncIterator[LostSample]:
        first, *others = (LostSample(request, "said", "no answer", retryable=False) for request in requests)
        yield first
        await self.arrive.wait()
        for each in others:
            yield each


async def test_leaving_while_answers_arrive_ends_quietly(requests_of, sampling) -> None:
    """A task that has been woken by its answer is not reached by a cancellation before it hands this on."""
    server = PromptServer()
    results = RolloutPool([server], sampling).decode(requests_of(3), None)  # type: ignore[list-item]
    async with aclosing(results):
        await anext(results)
        server.arrive.set()


async def test_requests_are_cut_to_size_and_their_number_is_bounded(serving, scripted, requests_of, sampling) -> None:
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, running.engine.load().running)
            await anyio.sleep(0.005)

    with serving(scripted({"seconds_per_token": 0.01}, limits=limits_for(256, 16))) as running:
        async with running.client() as client, anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            results = await Servers([client]).decoded(requests_of(8), sampling, samples_per_request=2, windows=[4])
            tasks.cancel_scope.cancel()
    assert Counter(result.request.uid for result in results) == Counter(f"data:{n}" for n in range(1, 9))
    assert 2 < most <= 4


async def test_more_samples_than_a_server_takes_at_once_are_sent_in_turn(
    serving, scripted, requests_of, sampling
) -> None:
    few = limits_for(256, 16).model_copy(update={"max_open_samples": 5})
    with serving(scripted(limits=few)) as running:
        async with running.client() as client:
            with pytest.raises(ProtocolError, match="batch_too_large"):
                await Servers([client]).decoded(requests_of(12), sampling)
            # A batch is open until its footer is out, so what comes on its heels may have to come again.
            results = await Servers([client]).decoded(requests_of(12), sampling, windows=[5], patience_s=10)
    assert all(isinstance(result, Rollout) for result in results)
    assert len(results) == 12


async def until(happened: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not happened():  # noqa: ASYNC110 - servers run on other threads
            await anyio.sleep(0.01)


@pytest.fixture
def server_process(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[[dict[str, object]], tuple[int, str]]]:
    """Start a scripted server as a process of its own; gives its pid and address."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: dict[str, object]) -> tuple[int, str]:
        (tmp_path / "killed.json").write_bytes(orjson.dumps(script))
        config = {
            "global_max_length": 256,
            "model": {"model": str(checkpoint)},
            "training": {"output_dir": str(tmp_path / "out")},
            "custom": {
                "trainer_variant": "stage2_ab_training",
                "train_jsonl": "none.jsonl",
                "extra": {
                    "stage2_ab": {"schedule": {"pattern": ["B"]}},
                    "rollout_matching": {"rollout_backend": "hf", "max_new_tokens": 16},
                },
            },
        }
        (tmp_path / "server.yaml").write_text(yaml.safe_dump(config))
        arguments = ["--config", str(tmp_path / "server.yaml"), "--port", "0", "--engine", "scripted"]
        arguments += ["--weights-root", str(tmp_path / "weights")]
        process = subprocess.Popen(
            [sys.executable, "-m", "rollout_server", *arguments, "--script", str(tmp_path / "killed.json")],
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        assert "ready" in process.stdout.readline()
        return process.pid, f"http://{address}"

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
async def test_a_killed_server_loses_no_answer(server_process, serving, scripted, requests_of, sampling) -> None:
    pid, url = server_process({"delays": {f"data:{number}": 30 for number in range(2, 9)}})
    killed_at = 0.0
    with serving(scripted()) as other:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as to_killed, other.client() as to_other:
            pool = RolloutPool(Servers([to_killed, to_other]).servers, sampling)
            got: list[Result] = []
            with anyio.fail_after(20):
                async with aclosing(pool.decode(requests_of(8), None)) as results:
                    async for result in results:
                        if result.request.uid == "data:1":
                            os.kill(pid, signal.SIGKILL)
                            killed_at = time.monotonic()
                        got.append(result)
    assert Counter(result.request.uid for result in got) == Counter(f"data:{n}" for n in range(1, 9))
    assert all(isinstance(result, Rollout) for result in got)
    assert time.monotonic() - killed_at < 10
