import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file

from learner.weight_sync.transports import HttpTransport, write_update
from shared.digest import file_digest
from shared.errors import WeightSyncFailed
from shared.wire import PolicyVersion

VERSION = PolicyVersion(incarnation="ab", step=4)


def test_a_file_holds_what_its_manifest_announces(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.randn(4, 3).T}
    update = write_update(tmp_path, tensors, VERSION, "full", "file")
    manifest, held = update.manifest, load_file(update.file)
    assert all(torch.equal(held[name], tensor) for name, tensor in tensors.items())
    assert [(each.name, each.shape, each.dtype, each.num_bytes) for each in manifest.tensors] == [
        ("a", (3, 4), "float32", 48),
        ("c", (3, 4), "float32", 48),  # before what is narrower
        ("b", (5,), "bfloat16", 10),
    ]
    assert manifest.num_bytes == update.file.stat().st_size
    assert manifest.digest == file_digest(update.file)
    assert tmp_path / str(manifest.folder) == update.file.parent
    update.drop()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told_with_its_size_and_the_cure(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(WeightSyncFailed, match=r"writing 48 bytes .*root failed: .*sync\.weights_root"):
        write_update(tmp_path / "root", {"a": torch.zeros(12)}, VERSION, "full", "file")


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
    published = await site.publisher(HttpTransport(2**20)).publish_if_stale(1)
    assert await site.held() == [published.version]
    assert next(transport.sent) == -(-published.sent_bytes // 2**20) + len(cut)
    assert not list(site.root.glob("incoming-*"))


async def test_a_line_that_stays_cut_leaves_the_server_out_and_nothing_on_it(site_of) -> None:
    site = await site_of({}, transport=CuttingTransport(set(range(1, 100))))
    published = await site.publisher(HttpTransport(2**20)).publish_if_stale(1)
    assert published.left_out == (site.channels[0].name,)
    status = await site.channels[0].status()
    assert (status.phase, status.received_bytes) == ("serving", 0)
    assert not list(site.root.glob("incoming-*"))
