"""A port is free, or it is named."""

import socket

import pytest

from shared.errors import BoxloopError
from shared.listening import bound_socket


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BoxloopError, match=f"127.0.0.1:{port}"):
            bound_socket("127.0.0.1", port)
