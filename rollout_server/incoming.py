"""The file in which the chunks of one update by transport `http` are put together."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterable
from pathlib import Path

import anyio

from rollout_server.refusal import Refusal


class IncomingFile:
    """A file of this server's own under `root`, filled in order of offsets up to the announced `num_bytes`.

    A chunk counts whole or not at all, so a sender whose connection was cut goes on at `received_bytes`. Raises Refusal
    when `root` has no room for it.
    """

    def __init__(self, root: Path, num_bytes: int) -> None:
        free_bytes = shutil.disk_usage(root).free
        if free_bytes < num_bytes:
            message = (
                f"the update has {num_bytes} bytes and {root} room for {free_bytes}; free some, or move weights_root"
            )
            raise Refusal(507, "no_room", message)
        descriptor, name = tempfile.mkstemp(prefix="incoming-", suffix=".safetensors", dir=root)
        os.close(descriptor)
        self.path = Path(name)
        self.received_bytes = 0
        self._num_bytes = num_bytes
        self._writing = anyio.Lock()

    async def append(self, offset: int, pieces: AsyncIterable[bytes]) -> None:
        """Take a chunk; raises Refusal when it does not go on where the last one ended, or is longer than announced."""
        chunk = bytearray()
        async for piece in pieces:
            chunk += piece
            if offset + len(chunk) > self._num_bytes:
                raise Refusal(413, "body_too_large", f"the update was announced with {self._num_bytes} bytes")
        async with self._writing:
            if offset != self.received_bytes:
                message = f"a chunk at offset {offset}, but {self.received_bytes} bytes have arrived"
                raise Refusal(409, "wrong_offset", message)
            await anyio.to_thread.run_sync(self._write, offset, chunk)
            self.received_bytes += len(chunk)

    def discard(self) -> None:
        """Remove what has arrived; a chunk that is still being taken is refused."""
        self.path.unlink(missing_ok=True)

    def _write(self, offset: int, chunk: bytearray) -> None:
        try:
            with self.path.open("r+b") as file:
                file.seek(offset)
                file.write(chunk)
        except FileNotFoundError:
            raise Refusal(409, "not_prepared", "the update was replaced or aborted meanwhile") from None
        except OSError as error:
            raise Refusal(507, "no_room", f"{self.path} cannot be written: {error}") from error
