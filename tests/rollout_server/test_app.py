"""Routes as seen by a stranger, a friend and a machine that polls."""

import asyncio
import re
from dataclasses import replace

import httpx
import pytest
from fastapi.routing import APIRoute

from rollout_server.app import create_app
from rollout_server.engines.table import build_engine
from shared.probe import PUBLIC_PATHS
from shared.wire import ErrorBody, ServerInfo

TOKEN = "t" * 32


async def test_each_route_is_public_on_purpose_or_refuses_without_the_token(scripted, serving) -> None:
    settings = scripted(token=TOKEN)
    routes = [
        (method, re.sub(r"{\w+}", "x", route.path))
        for route in create_app(build_engine(settings), settings).routes
        for method in route.methods
    ]
    assert len(routes) >= 10
    with serving(settings) as server:
        async with server.client() as stranger, server.client(headers={"authorization": f"Bearer {TOKEN}"}) as friend:
            for method, path in routes:
                strange, known = [(await client.request(method, path)).status_code for client in (stranger, friend)]
                assert (strange == 401) == (path not in PUBLIC_PATHS), path
                assert known != 401, path


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer x", f"Bearer {TOKEN}x", f"bearer {TOKEN}", TOKEN, "Bearer é"])
async def test_only_the_token_opens(scripted, serving, value: str) -> None:
    with serving(scripted(token=TOKEN)) as server:
        async with server.client(headers={"authorization": value.encode("latin-1")}) as client:
            response = await client.get("/info")
            unknown = await client.get("/not/a/route")
    assert (response.status_code, ErrorBody.model_validate_json(response.content).code) == (401, "unauthorized")
    assert unknown.status_code == 401


async def test_info_tells_what_the_server_is(scripted, serving, checkpoint, tmp_path) -> None:
    with serving(scripted(weights_root=tmp_path)) as server:
        async with server.client() as client:
            info = ServerInfo.model_validate_json((await client.get("/info")).content)
    assert (info.engine, info.model, info.policy_version) == ("scripted", str(checkpoint), None)
    assert {"logprobs", "transport:file", "mode:full"} <= set(info.capabilities)
    assert len(info.tokenizer_digest) == 64


async def test_a_server_without_a_weights_root_claims_no_transport(scripted, serving) -> None:
    with serving(scripted()) as server:
        async with server.client() as client:
            info = ServerInfo.model_validate_json((await client.get("/info")).content)
    assert not [capability for capability in info.capabilities if ":" in capability]


async def test_a_body_over_the_limit_is_refused_announced_or_not(scripted, serving) -> None:
    settings = scripted()
    settings = replace(settings, limits=settings.limits.model_copy(update={"max_body_bytes": 1000}))

    async def unannounced():
        for _ in range(11):
            yield b" " * 100

    with serving(settings) as server:
        async with server.client() as client:
            responses: list[httpx.Response] = [
                await client.post("/rollouts", content=b" " * 1001),
                await client.post("/rollouts", content=unannounced()),
            ]
            fitting = await client.post("/rollouts", content=b" " * 1000)
    for response in responses:
        assert (response.status_code, ErrorBody.model_validate_json(response.content).code) == (413, "body_too_large")
    assert fitting.status_code == 400


async def test_until_the_engine_is_up_probes_answer_and_work_is_refused(scripted, prompts) -> None:
    settings = scripted()
    app = create_app(build_engine(settings), settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        assert (await client.get("/health/")).status_code == 200
        ready = await client.get("/ready/")
        assert ready.status_code == 503
        assert "engine" in ready.text
        refused = await client.post("/rollouts", content=prompts.batch("a").model_dump_json())
    assert refused.status_code == 503
    assert ErrorBody.model_validate_json(refused.content).retryable


async def test_a_server_is_ready_when_its_canary_has_sung_and_not_before(scripted, prompts, tmp_path) -> None:
    settings = scripted({"delays": {"canary": 0.3}}, weights_root=tmp_path)
    engine = build_engine(settings)
    app = create_app(engine, settings)
    await engine.start()
    trying = asyncio.create_task(app.state.weights.start())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        ready = await client.get("/ready/")
        assert (ready.status_code, (await client.get("/health/")).status_code) == (503, 200)
        assert "have not been tried yet" in ready.text
        refused = await client.post("/rollouts", content=prompts.batch("a").model_dump_json())
        assert (refused.status_code, refused.json()["retryable"]) == (503, True)
        await trying
        assert (await client.get("/ready/")).status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/weights", 405)])
async def test_what_is_not_served_is_an_error_body_too(scripted, serving, method: str, path: str, status: int) -> None:
    with serving(scripted()) as server:
        async with server.client() as client:
            response = await client.request(method, path)
    assert (response.status_code, ErrorBody.model_validate_json(response.content).code) == (status, "not_served")


def test_every_route_is_a_plain_api_route(scripted) -> None:
    settings = scripted()
    assert all(isinstance(route, APIRoute) for route in create_app(build_engine(settings), settings).routes)
