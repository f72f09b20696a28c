"""Who may talk to a server."""

from pathlib import Path

import pytest

from shared.access import TOKEN_VARIABLE, check_token, read_token
from shared.errors import ConfigError

LONG = "t" * 32


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_loopback_server_may_go_without_a_token(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    check_token(None, host)


@pytest.mark.parametrize("token", ["", "short", "t" * 31])
@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::", "server.example"])
def test_any_other_address_needs_a_long_token(monkeypatch: pytest.MonkeyPatch, host: str, token: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(ConfigError, match="at least 32 bytes"):
        check_token(read_token(None), host)
    monkeypatch.setenv(TOKEN_VARIABLE, LONG)
    check_token(read_token(None), host)


def test_a_token_file_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "other")
    (tmp_path / "token").write_text(LONG + "\n")
    assert read_token(tmp_path / "token") == LONG
    with pytest.raises(ConfigError, match="missing"):
        read_token(tmp_path / "missing")
