"""The lines of a rollout stream as bytes and back: one JSON object a line, decoded as the bytes come."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator

from pydantic import TypeAdapter, ValidationError

from shared.errors import ProtocolError
from shared.wire import StreamError, StreamFooter, StreamHeader, StreamHeartbeat, StreamLine, StreamSample

MEDIA_TYPE = "application/x-ndjson"
MAX_LINE_BYTES = 16 * 2**20

AnyLine = StreamHeader | StreamSample | StreamError | StreamHeartbeat | StreamFooter

_LINE: TypeAdapter[AnyLine] = TypeAdapter(StreamLine)


def encode_line(line: AnyLine) -> bytes:
    """Return `line` as one line of UTF-8 JSON with its line feed."""
    return line.model_dump_json().encode() + b"\n"


class LineDecoder:
    """Turns a stream of bytes, cut anywhere, into lines."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._partial = bytearray()

    def feed(self, chunk: bytes) -> Iterator[AnyLine]:
        """Yield the lines that `chunk` completes.

        Raises ProtocolError for a line that is not in the contract or longer than the limit.
        """
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield _decoded(bytes(self._partial) + piece)
            self._partial.clear()
        self._partial += rest
        if len(self._partial) > self._max_line_bytes:
            raise ProtocolError(f"a line of the rollout stream exceeds {self._max_line_bytes} bytes")


def _decoded(line: bytes) -> AnyLine:
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        raise ProtocolError(f"not a line of the rollout stream: {line[:200]!r}: {error}") from error


async def decode_lines(chunks: AsyncIterable[bytes]) -> AsyncGenerator[AnyLine, None]:
    """Yield the lines of `chunks` as they complete.

    What follows the last line feed is a line that was cut and is left out: the missing footer tells.
    """
    decoder = LineDecoder()
    async for chunk in chunks:
        for line in decoder.feed(chunk):
            yield line
