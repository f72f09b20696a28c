import itertools
from collections.abc import AsyncIterator

import httpx
import pytest

from learner.weight_sync.http import HttpOutlet


class CuttingTransport(httpx.AsyncHTTPTransport):
    """Breaks off in the middle of chosen chunks, counted from 0."""

    def __init__(self, cut: set[int]) -> None:
        super().__init__()
        self.sent = itertools.count()
        self._cut = cut

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/weights/chunk" and next(self.sent) in self._cut:
            request.stream = CutStream(request.stream)
        return await super().handle_async_request(request)


class CutStream(httpx.AsyncByteStream):
    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece[: len(piece) // 2]
            raise httpx.WriteError("the line is cut, says the test")


@pytest.mark.parametrize("cut", [set(), {0}, {1, 2, 4}], ids=["none", "the first", "two in a row"])
async def test_a_chunk_that_was_cut_is_sent_again(site_of, cut: set[int]) -> None:
    transport = CuttingTransport(cut)
    site = await site_of({}, transport=transport)
    published = await site.publisher(HttpOutlet(2**20)).publish_if_stale(1)
    assert await site.held() == [published.version]
    assert next(transport.sent) == -(-published.sent_bytes // 2**20) + len(cut)
    assert not list(site.root.glob("incoming-*"))


async def test_a_line_that_stays_cut_leaves_the_server_out_and_nothing_on_it(site_of) -> None:
    site = await site_of({}, transport=CuttingTransport(set(range(1, 100))))
    published = await site.publisher(HttpOutlet(2**20)).publish_if_stale(1)
    assert published.left_out == (site.channels[0].name,)
    status = await site.channels[0].status()
    assert (status.phase, status.received_bytes) == ("serving", 0)
    assert not list(site.root.glob("incoming-*"))
