"""Who may talk to a server: the token that both sides of a run know, and the addresses that do without one."""

import os
from ipaddress import ip_address
from pathlib import Path

from shared.errors import ConfigError

TOKEN_VARIABLE = "BOXLOOP_TOKEN"
MIN_TOKEN_BYTES = 32
LAST_PORT = 65535


def read_token(token_file: Path | None) -> str | None:
    """The token of `token_file`, else of the environment; None when there is none. Raises ConfigError for no file."""
    try:
        token = token_file.read_text() if token_file else os.environ.get(TOKEN_VARIABLE, "")
    except OSError as error:
        raise ConfigError(f"token file {token_file} cannot be read: {error}") from error
    return token.strip() or None


def check_token(token: str | None, host: str) -> None:
    """Raise ConfigError for a host that other machines can reach, unless the token has MIN_TOKEN_BYTES bytes."""
    num_bytes = len((token or "").encode())
    if not is_loopback(host) and num_bytes < MIN_TOKEN_BYTES:
        raise ConfigError(
            f"host {host} can be reached from other machines: set {TOKEN_VARIABLE} or --token-file to a token of at "
            f"least {MIN_TOKEN_BYTES} bytes (got {num_bytes}), or bind 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; a name other than localhost counts as another machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
