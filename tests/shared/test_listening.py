"""A port is free, or it is named; what is written to its connections goes at once."""

import asyncio
import socket

import pytest

from shared.errors import BoxloopError
from shared.listening import bound_socket


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BoxloopError, match=f"127.0.0.1:{port}"):
            bound_socket("127.0.0.1", port)


async def test_small_writes_do_not_wait_for_an_acknowledgement() -> None:
    accepted: asyncio.Queue[int] = asyncio.Queue()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        await accepted.put(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = bound_socket("127.0.0.1", 0)
    async with await asyncio.start_server(accept, sock=listener):
        _, client = await asyncio.open_connection(*listener.getsockname())
        assert await accepted.get() != 0
        client.close()
