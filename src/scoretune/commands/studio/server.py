"""The studio behind a socket: a free port, and a signal that ends it when all is answered."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from scoretune.core.errors import UserError

if TYPE_CHECKING:
    from scoretune.commands.studio.security import App

MOST_CONNECTIONS = 512
PATIENCE = 3
"""Seconds in which open answers may end when the studio is stopped."""


def serve(app: App, at: socket.socket) -> None:
    """Serve until Ctrl-C or a signal to end."""
    import uvicorn

    config: Any = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=PATIENCE,
        limit_concurrency=MOST_CONNECTIONS,
    )
    try:
        uvicorn.Server(config).run(sockets=[at])
    finally:
        at.close()


def check_installed() -> None:
    """Raise UserError where the studio's libraries are missing."""
    try:
        import fastapi
        import jinja2
        import python_multipart
        import sqlalchemy
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"the studio needs {error.name}: pip install 'scoretune[studio]'"
        ) from error
    del fastapi, jinja2, python_multipart, sqlalchemy, uvicorn
