"""The socket a process answers on, taken before anything slow is done."""

import socket

from shared.errors import BoxloopError


def bound_socket(host: str, port: int) -> socket.socket:
    """A bound socket, `port` 0 = any free one; raises BoxloopError when the port is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio lets small writes go at once on connections whose protocol is named TCP, and not on others: a body behind
    # its headers, or one more line of a stream, then waits for the reader's next acknowledgement, up to 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise BoxloopError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from error
    listener.set_inheritable(False)
    return listener
