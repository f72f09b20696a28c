from pathlib import Path

import pytest

from learner.servers.http import server_clients
from learner.servers.rollouts import RolloutServer
from shared.access import TOKEN_VARIABLE
from shared.config.rollout import ServerAddress, ServerSection
from shared.errors import ProtocolError

TOKEN = "a token of thirty-two bytes, more"


def section(url: str, **changes: object) -> ServerSection:
    return ServerSection(servers=(ServerAddress(base_url=url),), **changes)


async def test_the_token_comes_from_its_file_else_from_the_environment(
    serving, scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with serving(scripted(token=TOKEN)) as running:
        monkeypatch.setenv(TOKEN_VARIABLE, "another one")
        async with server_clients(section(running.url, token_file=file)) as (client,):
            assert (await RolloutServer(client, 5).info()).engine == "scripted"
        async with server_clients(section(running.url)) as (client,):
            with pytest.raises(ProtocolError, match="401"):
                await RolloutServer(client, 5).info()
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
        async with server_clients(section(running.url)) as (client,):
            assert (await RolloutServer(client, 5).info()).engine == "scripted"


async def test_a_proxy_of_the_environment_is_not_asked(serving, scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(scripted()) as running:
        async with server_clients(section(running.url)) as (client,):
            assert (await RolloutServer(client, 5).info()).engine == "scripted"


async def test_an_answer_that_is_no_rollout_is_waited_for_as_long_as_configured(serving, scripted) -> None:
    with serving(scripted()) as running:
        async with server_clients(section(running.url, timeout_s=7.5)) as (client,):
            assert client.timeout.read == 7.5
