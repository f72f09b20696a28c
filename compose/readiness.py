"""Asking rollout servers how they are: whether they can take work, and whether they have failed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import httpx
from pydantic import ValidationError
from rich.console import Console

from compose.process import ChildProcess
from shared.errors import ServerNeverReady
from shared.wire import HealthReport

PROBE_TIMEOUT_S = 2.0


@dataclass
class ServerProcess:
    """A server that was started, and where it answers. `child` is replaced when it is started again."""

    child: ChildProcess
    base_url: str

    @property
    def name(self) -> str:
        return self.child.spec.name

    def restart(self) -> None:
        """Start it again with the same arguments; the one before must have been stopped."""
        self.child = ChildProcess(self.child.spec)

    def stop(self, grace_s: float) -> None:
        self.child.stop(grace_s)


class Probe:
    """Asks the public routes of servers. Used as a context manager."""

    def __init__(self, timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._client = httpx.Client(trust_env=False, timeout=timeout_s)

    def __enter__(self) -> "Probe":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def failure(self, base_url: str) -> str | None:
        """What `/health/` says has failed: nothing ("") while the server lives, None when it does not answer."""
        response = self._get(f"{base_url}/health/")
        if response is None:
            return None
        return _missing(response) if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else ""

    def waits_for(self, base_url: str) -> str:
        """What the server still waits for, empty when it is ready."""
        response = self._get(f"{base_url}/ready/")
        if response is None:
            return "waiting for the process to listen"
        return "" if response.status_code == httpx.codes.OK else f"waiting for {_missing(response)}"

    def _get(self, url: str) -> httpx.Response | None:
        try:
            return self._client.get(url)
        except httpx.HTTPError:
            return None


def _missing(response: httpx.Response) -> str:
    try:
        report = HealthReport.model_validate_json(response.content)
    except ValidationError:
        return f"an answer other than {response.status_code}"
    missing = [part for part in report.components if not (part.live and part.ready)]
    return ", ".join(f"{part.name} ({part.reason})" if part.reason else part.name for part in missing)


def wait_until_ready(
    servers: Sequence[ServerProcess],
    timeout_s: float,
    interval_s: float,
    console: Console,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Poll `/ready/` of each server until all are ready, telling the console what they wait for.

    `meanwhile` is called after each round; what it raises ends the wait. Raises ServerNeverReady when one dies or
    `timeout_s` seconds have passed, with the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    told: dict[str, str] = {}
    waiting = list(servers)
    with Probe() as probe:
        while waiting:
            for server in list(waiting):
                _raise_if_dead(server)
                reason = probe.waits_for(server.base_url)
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
            meanwhile()
            if waiting:
                time.sleep(interval_s)


def _raise_if_dead(server: ServerProcess) -> None:
    code = server.child.exit_code
    if code is not None:
        raise ServerNeverReady(
            f"{server.name} ended with code {code} before it was ready. {server.child.spec.log} ends with\n"
            f"{server.child.log_tail()}"
        )
