"""Inlet `http`: the chunks of an update are put together in a file of the server's own."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import suppress
from pathlib import Path

import anyio

from rollout_server.engines.base import WeightFile
from rollout_server.refusal import Refusal
from rollout_server.weights.checks import check_file
from shared.digest import RunningDigest
from shared.streams import prefetched
from shared.weight_wire import Transport, WeightManifest

BLOCK_BYTES = 2**22
"""Written at once; of an update no more than three of these are in memory."""
PREFIX = "incoming-"


class IncomingFile:
    """A file of this server's own under `root`, filled in order of offsets up to the announced number of bytes.

    What is written counts, even of a chunk that is cut later: the sender goes on at `received_bytes`. The file is
    locked as long as this process lives and needs it. Raises Refusal when `root` has no room for it.
    """

    takes_chunks = True

    def __init__(self, manifest: WeightManifest, root: Path) -> None:
        self._lock, self.path = _new_file(root, manifest.num_bytes)
        self.received_bytes = 0
        self._manifest = manifest
        self._digest = RunningDigest()
        self._sender = object()
        self._writing = anyio.Lock()

    async def append(self, offset: int, pieces: AsyncIterable[bytes]) -> None:
        """Take a chunk; raises Refusal when it does not go on where the last one ended, or is longer than announced.

        The newest sender alone is heard: one whose connection hangs does not hold up its own second attempt.
        """
        if offset != self.received_bytes:
            message = f"a chunk at offset {offset}, but {self.received_bytes} bytes have arrived"
            raise Refusal(409, "wrong_offset", message)
        self._sender = sender = object()
        async with prefetched(self._blocks(offset, pieces), depth=2) as blocks:
            async for block in blocks:  # written while the next one comes in
                async with self._writing:
                    self._check_newest(sender)
                    digest = await anyio.to_thread.run_sync(self._write, offset, block)
                    self._check_newest(sender)
                    offset += sum(map(len, block))
                    self.received_bytes, self._digest = offset, digest

    async def verify(self) -> WeightFile:
        await check_file(self.path, self._manifest, self._digest.hexdigest())
        return WeightFile(self.path)

    def discard(self) -> None:
        """Remove what has arrived; a chunk that is still being taken is refused."""
        self._sender = object()
        self.path.unlink(missing_ok=True)
        os.close(self._lock)

    def _check_newest(self, sender: object) -> None:
        if sender is not self._sender:
            raise Refusal(409, "wrong_offset", "another chunk for this offset has begun, or the update is gone")

    async def _blocks(self, offset: int, pieces: AsyncIterable[bytes]) -> AsyncGenerator[list[bytes], None]:
        """The pieces by groups of about BLOCK_BYTES, not joined: growing a buffer copies it again and again."""
        block: list[bytes] = []
        start = offset
        async for piece in pieces:
            block.append(piece)
            offset += len(piece)
            if offset > self._manifest.num_bytes:
                raise Refusal(413, "body_too_large", f"the update was announced with {self._manifest.num_bytes} bytes")
            if offset - start >= BLOCK_BYTES:
                yield block
                block, start = [], offset
        yield block

    def _write(self, offset: int, block: list[bytes]) -> RunningDigest:
        """Write at `offset`; returns the digest with it."""
        digest = self._digest
        try:
            with self.path.open("r+b") as file:
                file.seek(offset)
                for piece in block:
                    file.write(piece)
                    digest = digest.after(memoryview(piece))
        except FileNotFoundError:
            raise Refusal(409, "not_prepared", "the update was replaced or aborted meanwhile") from None
        except OSError as error:
            raise Refusal(507, "no_room", f"{self.path} cannot be written: {error}") from error
        return digest


def _new_file(root: Path, num_bytes: int) -> tuple[int, Path]:
    """An empty file and the descriptor that holds its lock."""
    try:
        free_bytes = shutil.disk_usage(root).free
        if free_bytes >= num_bytes:
            descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=".safetensors", dir=root)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return descriptor, Path(name)
    except OSError as error:
        raise Refusal(507, "no_room", f"no file can be made in {root}: {error}") from error
    message = f"the update has {num_bytes} bytes and {root} room for {free_bytes}; free some, or move weights_root"
    raise Refusal(507, "no_room", message)


class HttpInlet:
    """Opens updates that are sent in chunks."""

    name: Transport = "http"

    def open(self, manifest: WeightManifest, root: Path) -> IncomingFile:
        return IncomingFile(manifest, root)

    def remove_left_over(self, root: Path) -> None:
        """Remove the incoming files of servers that were killed: nobody holds their locks any more.

        A lock says it of servers in other containers too, and of any process that has the number of a dead one.
        """
        for file in root.glob(f"{PREFIX}*"):
            with suppress(OSError), file.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
