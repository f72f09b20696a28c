"""One rollout server, seen from the learner: typed requests out, finished rollouts in."""

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx

from learner.plan.time_split import ServerActivity
from learner.servers.http import PROBE_TIMEOUT_S, ServerBusy, refusal
from learner.servers.stall import watch_progress
from learner.types import Answer, LostSample, Rollout, RolloutRequest
from shared.accounting import TimeAccount
from shared.checkpoint_facts import tokenizer_digest
from shared.errors import (
    ConfigError,
    PromptMismatch,
    ProtocolError,
    ServerNeverReady,
    ServerUnavailable,
)
from shared.framing import decode_lines
from shared.health import reasons
from shared.wire import (
    WIRE_VERSION,
    HealthReport,
    InlineImage,
    PolicyVersion,
    RolloutBatch,
    RolloutSample,
    Sampling,
    ServerInfo,
    Sibling,
    StreamError,
    StreamFooter,
    StreamHeader,
    StreamSample,
)

LOG = logging.getLogger(__name__)
ASK_AGAIN_S = 0.5


class RolloutServer:
    """HTTP client of one rollout server.

    A stream may go on without a line, or without an answer and a token, for at most `stall_timeout_s`, and in all for
    `infer_timeout_s` (None = without limit).
    """

    def __init__(self, client: httpx.AsyncClient, stall_timeout_s: float, infer_timeout_s: float | None = None) -> None:
        self._client = client
        self._stall_timeout_s = stall_timeout_s
        self._infer_timeout_s = infer_timeout_s
        self.name = str(client.base_url)
        self.account = TimeAccount(ServerActivity)

    async def info(self) -> ServerInfo:
        """Ask what the server is; raises ProtocolError when it speaks another wire version."""
        reply = await self._ask("GET", "/info", PROBE_TIMEOUT_S)
        info = ServerInfo.model_validate_json(reply.content)
        if info.wire_version != WIRE_VERSION:
            raise ProtocolError(f"{self.name} speaks wire version {info.wire_version}, this learner {WIRE_VERSION}")
        return info

    async def probe(self) -> None:
        """Raise ServerUnavailable unless every part but the weights is ready; those can be sent."""
        try:
            reply = await self._client.get("/ready/", timeout=PROBE_TIMEOUT_S)
            parts = HealthReport.model_validate_json(reply.content).components
        except (httpx.TransportError, ValueError) as error:
            raise ServerUnavailable(f"{self.name} answers no probe: {error!r}") from error
        missing = tuple(part for part in parts if not (part.live and part.ready) and part.name != "weights")
        if missing:
            raise ServerUnavailable(f"{self.name} is not ready: {reasons(HealthReport(ok=False, components=missing))}")

    async def decode(
        self,
        batch_id: str,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        version: PolicyVersion | None,
        return_logprobs: bool = False,
    ) -> AsyncGenerator[Answer, None]:
        """Yield one result a request as each finishes. Closing the iterator cancels the rest on the server.

        Raises ServerUnavailable when the stream is cut or stands still or the engine died, ServerBusy when the server
        is full, VersionConflict when it holds other weights, PromptMismatch when it expands a prompt differently,
        ProtocolError when it answers what was not asked.
        """
        open_requests = {request.uid: request for request in requests}
        body = RolloutBatch(
            batch_id=batch_id,
            policy_version=version,
            sampling=sampling,
            samples=wire_samples(requests),
            return_logprobs=return_logprobs,
        )
        complete = False
        try:
            async with self._stream(body) as response:
                await self._raise_for(response)
                lines = decode_lines(response.aiter_bytes())
                async for line in watch_progress(lines, self.name, self._stall_timeout_s, self._infer_timeout_s):
                    match line:
                        case StreamSample() | StreamError() if line.uid not in open_requests:
                            raise ProtocolError(f"{self.name} answered {line.uid!r}, which is not open in this batch")
                        case StreamSample():
                            yield checked_rollout(open_requests.pop(line.uid), line, self.name)
                        case StreamError(code="engine_died"):
                            raise ServerUnavailable(f"{self.name}: {line.message}")
                        case StreamError():
                            yield LostSample(open_requests.pop(line.uid), line.code, line.message, line.retryable)
                        case StreamFooter():
                            complete = True
                        case StreamHeader() if line.accepted != len(requests):
                            raise ProtocolError(f"{self.name} accepted {line.accepted} of {len(requests)} samples")
        except httpx.TransportError as error:
            raise ServerUnavailable(f"{self.name} broke off: {error!r}") from error
        if not complete or open_requests:
            raise ServerUnavailable(f"{self.name} ended a stream with {len(open_requests)} samples unanswered")

    @asynccontextmanager
    async def _stream(self, batch: RolloutBatch) -> AsyncIterator[httpx.Response]:
        """An open batch; as long as it is, the server's account says that it decodes."""
        with self.account.doing(ServerActivity.DECODING):
            async with self._client.stream(
                "POST",
                "/rollouts",
                content=batch.model_dump_json(),
                headers={"content-type": "application/json"},
                timeout=httpx.Timeout(self._stall_timeout_s),
            ) as response:
                yield response

    async def _ask(self, method: str, path: str, timeout_s: float) -> httpx.Response:
        try:
            response = await self._client.request(method, path, timeout=timeout_s)
        except httpx.TransportError as error:
            raise ServerUnavailable(f"{self.name} cannot be reached: {error!r}") from error
        await self._raise_for(response)
        return response

    async def _raise_for(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        await response.aread()
        error = refusal(self.name, response.status_code, response.content)
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise ServerBusy(str(error), float(response.headers.get("retry-after", 1)))
        raise error


def wire_samples(requests: Sequence[RolloutRequest]) -> tuple[RolloutSample, ...]:
    """Requests as they go over the wire: unexpanded prompt ids and the image's own bytes, once for all of a record."""
    by_place: dict[str, list[RolloutRequest]] = {}
    for request in requests:
        by_place.setdefault(request.place, []).append(request)
    return tuple(
        RolloutSample(
            uid=first.uid,
            prompt_token_ids=first.encoded.request_token_ids,
            images=(InlineImage(data=first.encoded.image.png),),
            seed=first.seed,
            siblings=tuple(Sibling(uid=each.uid, seed=each.seed) for each in others),
        )
        for first, *others in by_place.values()
    )


def checked_rollout(request: RolloutRequest, line: StreamSample, server: str) -> Rollout:
    """Turn a finished line into a Rollout after comparing both sides' view of the prompt."""
    encoded = request.encoded
    ours, theirs = (len(encoded.prompt_token_ids), (encoded.image.grid,)), (line.num_prompt_tokens, line.image_grid)
    if ours != theirs:
        raise PromptMismatch(
            f"{request.uid}: the learner expands the prompt to {ours[0]} tokens with image grids {ours[1]}, "
            f"{server} to {theirs[0]} with {theirs[1]}; both must load the same processor configuration"
        )
    return Rollout(
        request=request,
        token_ids=line.token_ids,
        finish_reason=line.finish_reason,
        policy_version=line.policy_version,
        token_logprobs=line.token_logprobs,
        queue_s=line.queue_s,
        decode_s=line.done_s - line.queue_s,
        arrived_at=time.monotonic(),
        stop_margins=line.stop_margins,
    )


async def introduce(servers: Sequence[RolloutServer], patience_s: float) -> list[ServerInfo]:
    """What each server is. One that cannot be reached is asked again: it may be starting, or being restarted.

    Raises ServerNeverReady after `patience_s` seconds, ProtocolError for a server that speaks otherwise.
    """
    deadline = time.monotonic() + patience_s
    return [await _introduce(server, deadline, patience_s) for server in servers]


async def _introduce(server: RolloutServer, deadline: float, patience_s: float) -> ServerInfo:
    told = False
    while True:
        try:
            return await server.info()
        except ServerUnavailable as error:
            if time.monotonic() + ASK_AGAIN_S > deadline:
                raise ServerNeverReady(
                    f"{error}; it was asked for {patience_s:g} s (vllm.server.timeout_s). Start it by `boxloop serve`, "
                    "or correct vllm.server.servers"
                ) from error
            if not told:
                LOG.warning("%s; asking it again for up to %g s (vllm.server.timeout_s)", error, patience_s)
            told = True
        await anyio.sleep(ASK_AGAIN_S)


def check_server(info: ServerInfo, name: str, folder: Path) -> None:
    """Raise ConfigError when a server's tokenizer is not the learner's."""
    digest = tokenizer_digest(folder)
    if digest and info.tokenizer_digest and digest != info.tokenizer_digest:
        raise ConfigError(
            f"model.model: {name} serves {info.model} with another tokenizer ({info.tokenizer_digest[:12]}) than "
            f"{folder} ({digest[:12]}); start both from one checkpoint"
        )
