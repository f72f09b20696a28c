"""One batch of rollouts: a request body in, a stream of lines out.

The decoding task fills a hand-off that holds as many lines as the batch asks for answers, the sending task drains it
into the socket. So a slow reader stops only the sending. A reader that goes away, a DELETE or the end of the stream
stops the decoding.
"""

import time
from collections.abc import Callable
from contextlib import aclosing
from math import isfinite
from pathlib import Path

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rollout_server.engines.base import Engine, EngineAnswer, EngineFailure, EngineRequest, EngineResult
from rollout_server.settings import ServerSettings
from shared.errors import EngineFailed
from shared.framing import MEDIA_TYPE, AnyLine, encode_line
from shared.streams import task_group
from shared.wire import (
    InlineImage,
    PolicyVersion,
    RolloutBatch,
    RolloutSample,
    SampleErrorCode,
    StreamError,
    StreamFooter,
    StreamHeader,
    StreamHeartbeat,
    StreamSample,
    WireImage,
)


class BatchStream(Response):
    """The answer to `POST /rollouts`; `on_end` is called once, when nothing of the batch is left in the engine."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        batch: RolloutBatch,
        version: PolicyVersion | None,
        engine: Engine,
        settings: ServerSettings,
        on_end: Callable[[], None],
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._batch = batch
        self._version = version
        self._engine = engine
        self._settings = settings
        self._on_end = on_end
        self._accepted_at = time.monotonic()
        self._num_answers = len(batch.uids)
        self._unanswered = set(batch.uids)
        self._lines_in, self._lines = anyio.create_memory_object_stream[AnyLine](max_buffer_size=self._num_answers)
        self._life = anyio.CancelScope()
        self._decoding = anyio.CancelScope()
        self._finished = self._failed = self._generated_tokens = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._life:
                self._life.deadline = anyio.current_time() + self._settings.max_stream_s
                async with task_group() as tasks:
                    tasks.start_soon(self._decode)
                    tasks.start_soon(_until_disconnect, receive, tasks.cancel_scope)
                    await self._send_lines(send)
                    tasks.cancel_scope.cancel()
        finally:
            self._on_end()

    @property
    def num_unanswered(self) -> int:
        return len(self._unanswered)

    def cancel(self) -> int:
        """End what is still being decoded, each sample by an error line; returns how many there were."""
        self._decoding.cancel()
        return self.num_unanswered

    def cut(self) -> None:
        """End the stream without a footer, so that its client asks elsewhere for what it lacks."""
        self._life.cancel()

    async def _decode(self) -> None:
        with self._lines_in:
            with self._decoding:
                try:
                    await self._answer_all()
                except EngineFailed as error:
                    self._fail_rest("engine_died", str(error), retryable=True)
            self._fail_rest("cancelled", "the batch was cancelled", retryable=False)

    async def _answer_all(self) -> None:
        requests = []
        for sample in self._batch.samples:
            try:
                images = [await self._image_bytes(image) for image in sample.images]
            except Exception as error:
                for answer in sample.answers:
                    self._put(EngineFailure(answer.uid, "bad_image", str(error)))
            else:
                requests += self._engine_requests(sample, tuple(images))
        if not requests:
            return
        async with aclosing(self._engine.generate(requests)) as results:
            async for result in results:
                self._put(result)

    def _engine_requests(self, sample: RolloutSample, images: tuple[bytes, ...]) -> list[EngineRequest]:
        return [
            EngineRequest(
                uid=answer.uid,
                prompt_token_ids=sample.prompt_token_ids,
                images=images,
                sampling=self._batch.sampling,
                seed=answer.seed,
                return_logprobs=self._batch.return_logprobs,
            )
            for answer in sample.answers
        ]

    async def _image_bytes(self, image: WireImage) -> bytes:
        """The encoded image; raises ValueError for a path that leads out of the image root, OSError if unreadable."""
        if isinstance(image, InlineImage):
            return image.data
        root = self._settings.image_root
        if root is None:
            raise ValueError("this server was started without an image root; send the image inline")
        file = (root / image.path).resolve()
        if not file.is_relative_to(root.resolve()):
            raise ValueError(f"path {image.path!r} leads out of the server's image root")
        return await anyio.to_thread.run_sync(_read_capped, file, self._settings.limits.max_body_bytes)

    def _put(self, result: EngineResult) -> None:
        self._unanswered.discard(result.uid)
        if isinstance(result, EngineAnswer) and not all(map(isfinite, result.token_logprobs or ())):
            # JSON has no word for them.
            message = "its log-probabilities are not finite: the weights are broken, or the model overflows"
            result = EngineFailure(result.uid, "engine_error", message)
        if isinstance(result, EngineAnswer):
            self._finished += 1
            self._generated_tokens += len(result.token_ids)
            self._lines_in.send_nowait(self._sample_line(result))
        else:
            self._failed += 1
            self._lines_in.send_nowait(
                StreamError(uid=result.uid, code=result.code, retryable=result.retryable, message=result.message)
            )

    def _fail_rest(self, code: SampleErrorCode, message: str, *, retryable: bool) -> None:
        for uid in sorted(self._unanswered):
            self._put(EngineFailure(uid, code, message, retryable))

    def _sample_line(self, answer: EngineAnswer) -> StreamSample:
        return StreamSample(
            uid=answer.uid,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            num_prompt_tokens=answer.num_prompt_tokens,
            image_grid=answer.image_grid,
            policy_version=self._version,
            token_logprobs=answer.token_logprobs,
            stop_margins=answer.stop_margins,
            queue_s=answer.started_at - self._accepted_at,
            first_token_s=answer.first_token_at - self._accepted_at,
            done_s=answer.finished_at - self._accepted_at,
        )

    async def _send_lines(self, send: Send) -> None:
        async def put(body: bytes, more_body: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more_body})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await put(encode_line(self._header()))
        for _ in range(self._num_answers):
            while (line := await self._line_in_time()) is None:
                await put(encode_line(self._heartbeat()))
            await put(encode_line(line))
        await put(encode_line(self._footer()))
        await put(b"", more_body=False)

    async def _line_in_time(self) -> AnyLine | None:
        with anyio.move_on_after(self._settings.heartbeat_s):
            return await self._lines.receive()
        return None

    def _header(self) -> StreamHeader:
        return StreamHeader(batch_id=self._batch.batch_id, policy_version=self._version, accepted=self._num_answers)

    def _heartbeat(self) -> StreamHeartbeat:
        load = self._engine.load()
        return StreamHeartbeat(running=load.running, waiting=load.waiting, generated_tokens=load.generated_tokens)

    def _footer(self) -> StreamFooter:
        return StreamFooter(
            finished=self._finished,
            failed=self._failed,
            generated_tokens=self._generated_tokens,
            seconds=time.monotonic() - self._accepted_at,
        )


async def _until_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _read_capped(file: Path, max_bytes: int) -> bytes:
    size = file.stat().st_size
    if size > max_bytes:
        raise ValueError(f"{file.name} has {size} bytes, the limit is {max_bytes}")
    return file.read_bytes()
