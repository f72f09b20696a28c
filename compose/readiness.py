"""Waiting until every rollout server says that it can take work."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from pydantic import ValidationError
from rich.console import Console

from compose.process import ChildProcess
from shared.errors import ServerNeverReady
from shared.wire import HealthReport


@dataclass(frozen=True)
class ServerProcess:
    """A server that was started, and where it will answer."""

    child: ChildProcess
    base_url: str

    @property
    def name(self) -> str:
        return self.child.spec.name


def wait_until_ready(servers: Sequence[ServerProcess], timeout_s: float, interval_s: float, console: Console) -> None:
    """Poll `/ready/` of each server until all are ready, telling the console what they wait for.

    Raises ServerNeverReady when one dies or `timeout_s` seconds have passed, with the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    told: dict[str, str] = {}
    waiting = list(servers)
    with httpx.Client(trust_env=False, timeout=max(interval_s, 2.0)) as client:
        while waiting:
            for server in list(waiting):
                _raise_if_dead(server)
                reason = _reason_not_ready(client, server.base_url)
                if told.get(server.name) != reason:
                    told[server.name] = reason
                    console.print(f"{server.name}: {reason or 'ready'}", style="dim", highlight=False, markup=False)
                if not reason:
                    waiting.remove(server)
                elif time.monotonic() > deadline:
                    raise ServerNeverReady(
                        f"{server.name} was not ready after {timeout_s:g} s: {reason}. Raise wait_timeout or see "
                        f"{server.child.spec.log}, which ends with\n{server.child.log_tail()}"
                    )
            if waiting:
                time.sleep(interval_s)


def _raise_if_dead(server: ServerProcess) -> None:
    code = server.child.exit_code
    if code is not None:
        raise ServerNeverReady(
            f"{server.name} ended with code {code} before it was ready. {server.child.spec.log} ends with\n"
            f"{server.child.log_tail()}"
        )


def _reason_not_ready(client: httpx.Client, base_url: str) -> str:
    try:
        response = client.get(f"{base_url}/ready/")
    except httpx.HTTPError:
        return "waiting for the process to listen"
    if response.status_code == httpx.codes.OK:
        return ""
    try:
        report = HealthReport.model_validate_json(response.content)
    except ValidationError:
        return f"waiting: /ready/ answers {response.status_code}"
    missing = [
        f"{part.name} ({part.reason})" if part.reason else part.name for part in report.components if not part.ready
    ]
    return f"waiting for {', '.join(missing)}"
