"""What stands in front of every route: the token and the size of a body."""

import hmac
from collections.abc import Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rollout_server.refusal import Refusal


class BearerGate:
    """Lets a request through that carries `Authorization: Bearer <token>`, or asks for a public path.

    Everything that is not public on purpose is refused, unknown paths too. `token` None opens the gate.
    """

    def __init__(self, app: ASGIApp, token: str | None, public_paths: Collection[str]) -> None:
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._public_paths = public_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._expected is None or scope["path"] in self._public_paths:
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
            return
        refusal = Refusal(401, "unauthorized", "this route needs the header Authorization: Bearer <token>")
        await refusal_response(refusal)(scope, receive, send)


class BodyLimit:
    """Refuses a body as soon as it is announced, or has grown, larger than `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(announced) > self._max_bytes:
            await refusal_response(self._refusal())(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._refusal()
            return message

        await self._app(scope, counted, send)

    def _refusal(self) -> Refusal:
        return Refusal(413, "body_too_large", f"the body exceeds max_body_bytes {self._max_bytes}")


def refusal_response(refusal: Refusal) -> Response:
    """A refusal as JSON."""
    return Response(
        refusal.body.model_dump_json(),
        status_code=refusal.status,
        headers=refusal.headers,
        media_type="application/json",
    )
