"""The weight transaction over HTTP: with the scripted engine where only its order matters."""

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest
from safetensors.numpy import load_file, save

from shared.framing import decode_lines
from shared.wire import (
    WEIGHTS_FILE,
    PolicyVersion,
    StreamSample,
    TensorSpec,
    WeightCommit,
    WeightCommitted,
    WeightManifest,
    WeightRefused,
    WeightStatus,
)


def version(step: int) -> PolicyVersion:
    return PolicyVersion(incarnation="ab", step=step)


def deliver(checkpoint: Path, root: Path, step: int) -> WeightManifest:
    """Write the checkpoint's own weights as version `step`."""
    tensors = load_file(checkpoint / "model.safetensors")
    data = save(tensors)
    folder = root / f"v{step}"
    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes(data)
    return WeightManifest(
        policy_version=version(step),
        mode="full",
        transport="file",
        tensors=tuple(
            TensorSpec(name=name, shape=array.shape, dtype="float32", num_bytes=array.nbytes)
            for name, array in tensors.items()
        ),
        num_bytes=len(data),
        digest=hashlib.sha256(data).hexdigest(),
        folder=folder.name,
    )


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


async def test_a_manifest_that_does_not_fit_is_refused_with_every_mismatch(
    scripted, serving, checkpoint, tmp_path
) -> None:
    manifest = deliver(checkpoint, tmp_path, 3)
    first, second, *rest = manifest.tensors
    wrong = manifest.model_copy(update={"tensors": (first.model_copy(update={"shape": (1,)}), *rest), "mode": "merged"})
    with serving(scripted(weights_root=tmp_path)) as server:
        async with server.client() as client:
            reply = await post(client, "prepare", wrong)
            assert (await status(client)).phase == "serving"
    mismatches = WeightRefused.model_validate_json(reply.content).mismatches
    assert reply.status_code == 422
    assert len(mismatches) == 3
    assert [name for name in ("merged", second.name, first.name) if any(name in text for text in mismatches)]


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


@pytest.mark.parametrize("script", [{"fail_loads": 1}, {"faults": {"canary": "nan"}}], ids=["load", "canary"])
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
