"""A reward behind HTTP: the server's side of `protocol`, on FastAPI and uvicorn.

Without `from __future__ import annotations`: FastAPI reads the annotations of the endpoints, which
name what is imported inside a function.
"""

import asyncio
import hmac
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from scoretune.core.errors import UserError, one_line
from scoretune.core.listening import listen
from scoretune.core.records import spans
from scoretune.rewards.base import Reward, checked
from scoretune.rewards.cache import Cached
from scoretune.rewards.remote import protocol

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

MOST_BYTES = 256 * 2**20
MOST_AT_ONCE = 16
"""Requests that have arrived whole and wait to be scored."""
MOST_CONNECTIONS = 256
PATIENCE = 60.0
"""Seconds in which a request's body must arrive."""
HEADER_PATIENCE = 10.0
"""Seconds in which a connection must have said what it wants."""


class Refusal(Exception):
    """A request that is answered by a status of 400 or above and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Service:
    """A reward for many callers, one request at a time: `batch` images at once, on `device`.

    Bodies above `limit` bytes are refused, and so are callers without the `token`, if there is one.
    All bodies that are held at once may be four times as long. `fingerprint` says what exactly
    scores.
    """

    name: str
    reward: Reward
    batch: int = 16
    token: str = ""
    limit: int = MOST_BYTES
    device: str = "cpu"
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock, init=False)
    places: Any = field(
        default_factory=lambda: threading.BoundedSemaphore(MOST_AT_ONCE), init=False
    )
    held: int = field(default=0, init=False)

    def scores(self, body: bytes) -> tuple[list[float], str]:
        """The scores of a request's body, and how many of them were cached, in words.

        Raises ProtocolError for a body that breaks the protocol, UserError for a reward that fails.
        """
        cache = self.reward.score_cache if isinstance(self.reward, Cached) else None
        with self.lock, torch.no_grad():  # decoding too: pictures of one request at a time
            request = protocol.decode_request(body)
            pixels = torch.from_numpy(request.pixels).permute(0, 3, 1, 2)
            before = cache.hits if cache else 0
            parts = []
            for s in spans(len(pixels), self.batch):
                images = pixels[s].float() / 255
                prompts = request.prompts[s]
                parts.append(checked(self.reward, self.name, images.to(self.device), prompts).cpu())
            hits = cache.hits - before if cache else 0
        note = f"{len(pixels)} images" + (f", {hits} remembered" if hits else "")
        return torch.cat(parts).tolist(), note

    def health(self, trusted: bool) -> protocol.Health:
        """What `/health` says; callers without the token learn no more than that it is ready."""
        if not trusted:
            return protocol.Health(ready=True)
        return protocol.Health(ready=True, reward=self.name, fingerprint=dict(self.fingerprint))

    def trusts(self, header: str | None) -> bool:
        """Whether an `Authorization` header names the token, or none is needed."""
        given = (header or "").encode("utf-8", "replace")
        return not self.token or hmac.compare_digest(given, f"Bearer {self.token}".encode())

    def check_caller(self, header: str | None) -> None:
        """Raise Refusal for strangers."""
        if not self.trusts(header):
            raise Refusal(401, "a token is needed: Authorization: Bearer TOKEN")

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places of whole requests. Raises Refusal where none is free."""
        if not self.places.acquire(blocking=False):
            raise Refusal(429, f"{MOST_AT_ONCE} questions wait already")
        try:
            yield
        finally:
            self.places.release()


class RewardServer:
    """Serves a Service at (host, port); port 0 takes a free one. Raises UserError if it cannot."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        uvicorn = _uvicorn()
        self.service = service
        self._socket = listen(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(service),
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=10,
                timeout_keep_alive=0,  # one request a connection, whose time is limited
                limit_concurrency=MOST_CONNECTIONS,
                http=_impatient(),
            )
        )

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    def serve(self) -> None:
        """Serve until `stop` or a signal, which is raised again when all is answered."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Have `serve` end, from another thread: what is being scored is answered first."""
        self._server.should_exit = True


def application(service: Service) -> "FastAPI":
    """The web application: `POST /` scores, `GET /health` says what; every answer is JSON."""
    from fastapi import FastAPI, Request
    from fastapi.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException

    app = FastAPI(title="scoretune serve-reward", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/")
    async def score(request: Request) -> protocol.ScoreResponse:
        request.state.began = time.monotonic()
        service.check_caller(request.headers.get("Authorization"))
        async with _body(request, service) as body:  # before it takes a place: it may drip
            with service.place():
                scores, note = await run_in_threadpool(service.scores, body)
        _log(request, 200, note)
        return protocol.ScoreResponse(scores=scores)

    @app.get("/health", response_model_exclude_none=True)
    async def health(request: Request) -> protocol.Health:
        return service.health(service.trusts(request.headers.get("Authorization")))

    for kind in (Refusal, protocol.ProtocolError, UserError, HTTPException, Exception):
        app.add_exception_handler(kind, _refuse)
    return app


async def _refuse(request: "Request", error: Exception) -> "Response":
    """The answer to a request that fails: a status and `{"error": "one line"}`."""
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    status, text = 500, str(error)
    if isinstance(error, Refusal):
        status = error.status
    elif isinstance(error, protocol.ProtocolError):
        status = 400
    elif isinstance(error, UserError):
        # What the reward refuses will be refused again; what broke may work the next time.
        status = 422 if error.__cause__ is None else 500
    elif isinstance(error, HTTPException):
        status = error.status_code
        text = f"nothing is at {request.url.path[:80]!r}: POST /, or GET /health"
    if status not in (408, 413, 503):  # of which enough was read already
        with suppress(Exception):  # the body is read, or its sender gone
            async with asyncio.timeout(PATIENCE):  # who still sends does not hear
                async for _ in request.stream():
                    pass
    _log(request, status, text)
    return JSONResponse(
        {"error": text}, status, {"Retry-After": "1"} if status in (429, 503) else None
    )


@asynccontextmanager
async def _body(request: "Request", service: Service) -> AsyncIterator[bytes]:
    """The body of a request, counted among those that are held while it is in use.

    Raises Refusal for one that is too long, does not arrive, or finds no room.
    """
    parts: list[bytes] = []
    size, kept, limit = 0, 0, service.limit
    try:
        try:
            async with asyncio.timeout(PATIENCE):
                async for part in request.stream():
                    size += len(part)
                    if size <= limit:
                        parts.append(part)
                        kept += len(part)
                        service.held += len(part)
                    elif size > limit + MOST_BYTES:
                        break
                    if service.held > 4 * limit:
                        raise Refusal(503, f"{service.held} bytes of other requests wait already")
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {PATIENCE:g} s") from None
        if size > limit:
            raise Refusal(413, f"{size} bytes, and {limit} at most: send fewer images")
        yield b"".join(parts)
    finally:
        service.held -= kept


def _log(request: "Request", status: int, text: str) -> None:
    """One line a request, with the milliseconds that it took."""
    caller, now = request.client.host if request.client else "-", time.monotonic()
    taken = 1000 * (now - getattr(request.state, "began", now))
    line = f"{caller} {status} {one_line(text)}, {taken:.2f} ms"
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def _impatient() -> Any:
    """uvicorn's protocol, but for connections that do not say in time what they want."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(HEADER_PATIENCE, self.close_unless_asked)

        def close_unless_asked(self) -> None:
            if self.cycle is None:  # no request's headers have arrived whole
                self.transport.close()

    return Impatient


def _uvicorn() -> Any:
    """uvicorn, where it and FastAPI are installed."""
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"serving a reward needs {error.name}: pip install 'scoretune[serve]'"
        ) from error
    return uvicorn
