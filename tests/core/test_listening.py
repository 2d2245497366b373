"""Sockets that servers of ours listen at."""

import socket

import pytest

from scoretune.core.errors import UserError
from scoretune.core.listening import listen


def test_connections_send_small_answers_at_once() -> None:
    """Without TCP_NODELAY an answer of two pieces takes 40 ms on loopback."""
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()):
        connection, _ = server.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("port", [None, 70_000])
def test_a_port_that_cannot_be_had_is_refused_with_the_fix(port: int | None) -> None:
    with listen("127.0.0.1", 0) as server:
        taken = server.getsockname()[1] if port is None else port
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{taken} .*--port"):
            listen("127.0.0.1", taken)
