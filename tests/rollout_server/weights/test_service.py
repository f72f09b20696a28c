"""The weight transaction over HTTP: with the scripted engine where only its order matters."""

import asyncio
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save

from shared.digest import file_digest
from shared.framing import decode_lines
from shared.weight_wire import (
    WEIGHTS_FILE,
    TensorSpec,
    WeightCommit,
    WeightCommitted,
    WeightManifest,
    WeightRefused,
    WeightStatus,
)
from shared.wire import PolicyVersion, StreamSample


def version(step: int) -> PolicyVersion:
    return PolicyVersion(incarnation="ab", step=step)


def deliver(checkpoint: Path, root: Path, step: int, **fields: object) -> WeightManifest:
    """Write the checkpoint's own weights as version `step`."""
    tensors = load_file(checkpoint / "model.safetensors")
    file = root / f"v{step}" / WEIGHTS_FILE
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(save(tensors))
    plain = {
        "policy_version": version(step),
        "mode": "full",
        "transport": "file",
        "tensors": tuple(
            TensorSpec(name=name, shape=array.shape, dtype="float32", num_bytes=array.nbytes)
            for name, array in tensors.items()
        ),
        "num_bytes": file.stat().st_size,
        "digest": file_digest(file),
        "folder": file.parent.name,
    }
    return WeightManifest(**(plain | fields))


async def post(client: httpx.AsyncClient, what: str, body: WeightManifest | WeightCommit) -> httpx.Response:
    return await client.post(f"/weights/{what}", content=body.model_dump_json())


async def status(client: httpx.AsyncClient) -> WeightStatus:
    return WeightStatus.model_validate_json((await client.get("/weights")).content)


async def test_a_committed_version_is_the_one_that_is_served(scripted, serving, prompts, checkpoint, tmp_path) -> None:
    manifest = deliver(checkpoint, tmp_path, 3)
    with serving(scripted(weights_root=tmp_path)) as server:
        async with server.client() as client:
            assert (await post(client, "prepare", manifest)).status_code == 200
            assert await status(client) == WeightStatus(phase="staging", policy_version=None, staged=version(3))
            reply = await post(client, "commit", WeightCommit(policy_version=version(3)))
            assert WeightCommitted.model_validate_json(reply.content).policy_version == version(3)
            assert await status(client) == WeightStatus(phase="serving", policy_version=version(3))
            batch = prompts.batch("a", policy_version=version(3))
            async with client.stream("POST", "/rollouts", content=batch.model_dump_json()) as response:
                lines = [line async for line in decode_lines(response.aiter_bytes())]
            assert [line.policy_version for line in lines if isinstance(line, StreamSample)] == [version(3)]
            stale = await client.post(
                "/rollouts", content=prompts.batch("a", policy_version=version(2)).model_dump_json()
            )
            assert stale.status_code == 409
            assert "boxloop_server_policy_step 3.0" in (await client.get("/metrics")).text


async def test_an_aborted_version_is_forgotten(scripted, serving, checkpoint, tmp_path) -> None:
    manifest = deliver(checkpoint, tmp_path, 3)
    with serving(scripted(weights_root=tmp_path)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            reply = await post(client, "abort", WeightCommit(policy_version=version(3)))
            assert WeightStatus.model_validate_json(reply.content).phase == "serving"
            assert (await post(client, "commit", WeightCommit(policy_version=version(3)))).status_code == 409


async def test_a_late_abort_of_another_learner_leaves_the_staged_update_alone(scripted, serving, sent) -> None:
    manifest, data, root = sent
    of_another = WeightCommit(policy_version=PolicyVersion(incarnation="dead", step=1))
    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            await put(client, 0, data)
            reply = await post(client, "abort", of_another)
            assert WeightStatus.model_validate_json(reply.content).received_bytes == len(data)
            assert (await post(client, "commit", WeightCommit(policy_version=version(1)))).status_code == 200


async def test_a_manifest_that_does_not_fit_is_refused_with_every_mismatch(
    scripted, serving, checkpoint, tmp_path
) -> None:
    manifest = deliver(checkpoint, tmp_path, 3)
    first, second, *rest = manifest.tensors
    wrong = manifest.model_copy(update={"tensors": (first.model_copy(update={"shape": (1,)}), *rest)})
    with serving(scripted(weights_root=tmp_path)) as server:
        async with server.client() as client:
            reply = await post(client, "prepare", wrong)
            assert (await status(client)).phase == "serving"
    mismatches = WeightRefused.model_validate_json(reply.content).mismatches
    assert reply.status_code == 422
    assert [name for name in (second.name, first.name) if any(name in text for text in mismatches)]
    assert len(mismatches) == 2


async def test_data_that_was_damaged_on_the_way_leaves_the_old_version_serving(
    scripted, serving, prompts, checkpoint, tmp_path
) -> None:
    good, bad = deliver(checkpoint, tmp_path, 1), deliver(checkpoint, tmp_path, 2)
    file = tmp_path / "v2" / WEIGHTS_FILE
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with serving(scripted(weights_root=tmp_path)) as server:
        async with server.client() as client:
            for manifest, expected in ((good, 200), (bad, 422)):
                await post(client, "prepare", manifest)
                reply = await post(client, "commit", WeightCommit(policy_version=manifest.policy_version))
                assert reply.status_code == expected
            assert await status(client) == WeightStatus(phase="serving", policy_version=version(1))
            assert (await client.get("/ready/")).status_code == 200


async def test_chunks_that_were_damaged_on_the_way_leave_the_old_version_serving(scripted, serving, sent) -> None:
    manifest, data, root = sent
    damaged = bytearray(data)
    damaged[-5] ^= 4
    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            for delivered, expected in ((damaged, 422), (data, 200)):
                await post(client, "prepare", manifest)
                for start in range(0, len(data), 100_000):
                    await put(client, start, bytes(delivered[start : start + 100_000]))
                reply = await post(client, "commit", WeightCommit(policy_version=version(1)))
                assert reply.status_code == expected, reply.text
                held = version(1) if expected == 200 else None
                assert await status(client) == WeightStatus(phase="serving", policy_version=held)


@pytest.mark.parametrize("script", [{"fail_loads": 1}, {"nan_loads": 1}], ids=["load", "canary"])
async def test_a_load_that_fails_taints_and_a_tainted_server_serves_nothing(
    scripted, serving, prompts, checkpoint, tmp_path, script
) -> None:
    manifest = deliver(checkpoint, tmp_path, 1)
    with serving(scripted(script, weights_root=tmp_path)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            reply = await post(client, "commit", WeightCommit(policy_version=version(1)))
            assert (reply.status_code, reply.json()["code"]) == (500, "load_failed")
            assert (await status(client)).phase == "tainted"
            assert [(await client.get(path)).status_code for path in ("/health/", "/ready/")] == [200, 503]
            refused = await client.post("/rollouts", content=prompts.batch("a").model_dump_json())
            assert (refused.status_code, refused.json()["code"]) == (503, "weights_tainted")


async def test_a_full_resend_heals_a_tainted_server(scripted, serving, checkpoint, tmp_path) -> None:
    manifest = deliver(checkpoint, tmp_path, 1)
    with serving(scripted({"fail_loads": 1}, weights_root=tmp_path)) as server:
        async with server.client() as client:
            for expected in (500, 200):
                await post(client, "prepare", manifest)
                reply = await post(client, "commit", WeightCommit(policy_version=version(1)))
                assert reply.status_code == expected
            assert (await client.get("/ready/")).status_code == 200


async def test_a_commit_waits_for_the_open_batches(scripted, serving, prompts, checkpoint, tmp_path) -> None:
    manifest = deliver(checkpoint, tmp_path, 1)
    with serving(scripted({"delays": {"slow": 0.3}}, weights_root=tmp_path)) as server:
        async with server.client() as client:
            body = prompts.batch("slow").model_dump_json()
            async with client.stream("POST", "/rollouts", content=body) as response:
                lines = decode_lines(response.aiter_bytes())
                assert (await anext(lines)).type == "header"
                await post(client, "prepare", manifest)
                commit = asyncio.create_task(post(client, "commit", WeightCommit(policy_version=version(1))))
                samples = [line async for line in lines if isinstance(line, StreamSample)]
            assert (await commit).status_code == 200
    assert [line.policy_version for line in samples] == [None]


async def test_batches_that_do_not_end_postpone_the_commit(scripted, serving, prompts, checkpoint, tmp_path) -> None:
    manifest = deliver(checkpoint, tmp_path, 1)
    settings = scripted({"faults": {"h": "hang"}}, weights_root=tmp_path, drain_timeout_s=0.1)
    with serving(settings) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            body = prompts.batch("h").model_dump_json()
            async with client.stream("POST", "/rollouts", content=body) as response:
                assert response.status_code == 200
                reply = await post(client, "commit", WeightCommit(policy_version=version(1)))
                assert (reply.status_code, reply.json()["code"]) == (409, "batches_open")
                await client.delete("/rollouts/b")
                await response.aread()
            assert (await post(client, "commit", WeightCommit(policy_version=version(1)))).status_code == 200


async def put(client: httpx.AsyncClient, offset: int, chunk: object) -> httpx.Response:
    return await client.put(f"/weights/chunk?offset={offset}", content=chunk)


def incoming(root: Path) -> list[Path]:
    return list(root.glob("incoming-*"))


@pytest.fixture
def sent(checkpoint, tmp_path) -> tuple[WeightManifest, bytes, Path]:
    """An update by http, its data, and the root of the server that it goes to."""
    manifest = deliver(checkpoint, tmp_path, 1, transport="http", folder=None)
    root = tmp_path / "root"
    root.mkdir()
    return manifest, (tmp_path / "v1" / WEIGHTS_FILE).read_bytes(), root


async def test_chunks_are_put_together_and_committed(scripted, serving, sent) -> None:
    manifest, data, root = sent
    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            for offset in range(0, len(data), 100_000):
                reply = await put(client, offset, data[offset : offset + 100_000])
                received = min(offset + 100_000, len(data))
                assert WeightStatus.model_validate_json(reply.content).received_bytes == received
            assert (await post(client, "commit", WeightCommit(policy_version=version(1)))).status_code == 200
            assert await status(client) == WeightStatus(phase="serving", policy_version=version(1))
    assert incoming(root) == []


async def test_a_chunk_that_was_cut_leaves_no_trace_and_is_sent_again(scripted, serving, sent) -> None:
    manifest, data, root = sent

    async def cut():
        yield data[1000:70_000]
        raise ConnectionResetError

    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            await put(client, 0, data[:1000])
            with pytest.raises(ConnectionResetError):
                await put(client, 1000, cut())
            assert (await status(client)).received_bytes == 1000
            assert (await put(client, 1000, data[1000:])).status_code == 200
            assert (await post(client, "commit", WeightCommit(policy_version=version(1)))).status_code == 200


@pytest.mark.parametrize("share", [1.0, 0.5], ids=["all", "half"])
async def test_a_sender_that_wakes_behind_its_second_attempt_writes_nothing(
    scripted, serving, sent, share: float
) -> None:
    manifest, data, root = sent
    until = 1000 + int(share * (len(data) - 1000))
    stalls, wakes = asyncio.Event(), asyncio.Event()

    async def stalling():
        yield data[1000:70_000]
        stalls.set()
        await wakes.wait()
        yield b"stale" * 1000

    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            await put(client, 0, data[:1000])
            first = asyncio.create_task(put(client, 1000, stalling()))
            await stalls.wait()
            await asyncio.sleep(0.2)  # the server has begun to take it
            assert (await put(client, 1000, data[1000:until])).status_code == 200
            wakes.set()
            refused = await first
            assert (refused.status_code, refused.json()["code"]) == (409, "wrong_offset")
            assert (await status(client)).received_bytes == until
            assert (await put(client, until, data[until:])).status_code == 200
            assert incoming(root)[0].read_bytes() == data
            assert (await post(client, "commit", WeightCommit(policy_version=version(1)))).status_code == 200


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 10, (409, "wrong_offset")),
        (2000, 10, (409, "wrong_offset")),
        (1000, 10**9, (413, "body_too_large")),
        (10**9, 1, (409, "wrong_offset")),
        (-1, 1, (400, "bad_request")),
    ],
    ids=["again", "a gap", "too long", "behind the end", "negative"],
)
async def test_a_chunk_goes_on_where_the_last_one_ended(
    scripted, serving, sent, offset: int, length: int, expected: tuple[int, str]
) -> None:
    manifest, data, root = sent
    chunk = data[1000:] + b"x" if length == 10**9 else b"x" * length
    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            await put(client, 0, data[:1000])
            reply = await put(client, offset, chunk)
            assert (reply.status_code, reply.json()["code"]) == expected
            assert 1000 <= (await status(client)).received_bytes < len(data)


async def test_what_has_arrived_goes_with_an_abort_a_new_update_and_a_refusal(scripted, serving, sent) -> None:
    manifest, data, root = sent
    commit = WeightCommit(policy_version=version(1))
    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            for end in ("abort", "prepare", "commit"):
                await post(client, "prepare", manifest)
                await put(client, 0, data[:1000])
                reply = await post(client, end, manifest if end == "prepare" else commit)
                assert reply.status_code == (422 if end == "commit" else 200)
                assert (await status(client)).received_bytes == 0
                assert [file.stat().st_size for file in incoming(root)] == ([0] if end == "prepare" else [])
            assert (await put(client, 0, data[:1000])).json()["code"] == "not_prepared"


async def test_an_update_that_has_no_room_is_refused_before_it_is_sent(scripted, serving, sent) -> None:
    manifest, _, root = sent
    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            reply = await post(client, "prepare", manifest.model_copy(update={"num_bytes": 2**60}))
            assert (reply.status_code, reply.json()["code"]) == (507, "no_room")
            assert (await status(client)).phase == "serving"


async def test_an_update_without_room_takes_the_one_before_with_it(scripted, serving, sent) -> None:
    manifest, data, root = sent
    with serving(scripted(weights_root=root)) as server:
        async with server.client() as client:
            await post(client, "prepare", manifest)
            await put(client, 0, data[:1000])
            too_large = manifest.model_copy(update={"policy_version": version(2), "num_bytes": 2**60})
            assert (await post(client, "prepare", too_large)).status_code == 507
            assert await status(client) == WeightStatus(phase="serving", policy_version=None)
            assert incoming(root) == []
            reply = await put(client, 1000, data[1000:2000])
            assert (reply.status_code, reply.json()["code"]) == (409, "not_prepared")


async def test_a_weights_root_that_is_gone_is_told(scripted, serving, sent) -> None:
    manifest, _, root = sent
    with serving(scripted(weights_root=root)) as server:
        root.rmdir()
        async with server.client() as client:
            reply = await post(client, "prepare", manifest)
            assert (reply.status_code, reply.json()["code"]) == (507, "no_room")
            assert str(root) in reply.json()["message"]


async def test_a_server_removes_what_a_dead_one_left_and_nothing_of_a_living_one(scripted, serving, sent) -> None:
    manifest, data, root = sent
    (root / "incoming-dead.safetensors").write_bytes(data[:1000])
    with serving(scripted(weights_root=root)) as server:
        assert incoming(root) == []
        async with server.client() as client:
            await post(client, "prepare", manifest)
            await put(client, 0, data[:1000])
            with serving(scripted(weights_root=root)):
                assert [file.stat().st_size for file in incoming(root)] == [1000]
            assert (await put(client, 1000, data[1000:])).status_code == 200
            assert len(incoming(root)) == 1
    assert incoming(root) == []  # nor of itself when it ends


async def test_a_merged_update_is_refused_until_its_learner_has_sent_everything(
    scripted, serving, checkpoint, tmp_path
) -> None:
    full, merged = deliver(checkpoint, tmp_path, 1), deliver(checkpoint, tmp_path, 2, mode="merged")
    with serving(scripted(weights_root=tmp_path)) as server:
        async with server.client() as client:
            refused = await post(client, "prepare", merged)
            assert refused.status_code == 422
            assert "send full" in refused.text
            for manifest in (full, merged):
                await post(client, "prepare", manifest)
                reply = await post(client, "commit", WeightCommit(policy_version=manifest.policy_version))
                assert reply.status_code == 200
            assert (await status(client)).policy_version == version(2)
