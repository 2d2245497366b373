"""A socket that a server of ours listens at."""

from __future__ import annotations

import socket

from scoretune.core.errors import UserError

BACKLOG = 256


def listen(host: str, port: int) -> socket.socket:
    """A socket at (host, port), IPv4 or IPv6; port 0 takes a free one. Raises UserError if it
    cannot be had, naming the fix.

    Its connections send small answers at once (TCP_NODELAY, which they inherit). asyncio sees to
    that only on sockets whose protocol is named; without it the second half of an answer waits
    40 ms for the acknowledgement of the first.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        at = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen at {host}:{port} ({error}): another server may run there; choose "
            "another --port, 0 for any that is free, or another --host"
        ) from error
    at.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return at
