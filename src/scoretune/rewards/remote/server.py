"""A reward behind HTTP: the server's side of `protocol`, on the standard library alone."""

from __future__ import annotations

import hmac
import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.rewards.base import Reward, checked
from scoretune.rewards.remote import protocol

MOST_BYTES = 256 * 2**20
MOST_AT_ONCE = 16
PATIENCE = 60.0


@dataclass
class Service:
    """A reward for many callers, one question at a time: `batch` images at once, on `device`.

    Bodies above `limit` bytes are refused, and so are callers without the `token`, if there is one.
    `fingerprint` says what exactly scores.
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

    def scores(self, body: bytes) -> tuple[list[float], str]:
        """The scores of a request's body, and how many of them were remembered, in words.

        Raises wire.Malformed for a body that is not the protocol's, UserError for a reward that
        fails.
        """
        question = protocol.read(body)
        images = torch.from_numpy(question.pixels).permute(0, 3, 1, 2).float() / 255
        memory = getattr(self.reward, "memory", None)
        with self.lock, torch.no_grad():
            before = 0 if memory is None else memory.hits
            parts = [
                self._part(images[start : start + self.batch], question.prompts[start:])
                for start in range(0, len(images), self.batch)
            ]
            recalled = 0 if memory is None else memory.hits - before
        told = f"{len(images)} images" + (f", {recalled} remembered" if recalled else "")
        return torch.cat(parts).tolist(), told

    def _part(self, images: Tensor, prompts: tuple[protocol.Told, ...]) -> Tensor:
        asked = prompts[: len(images)]
        return checked(self.reward, self.name, images.to(self.device), asked).cpu()

    def health(self, trusted: bool) -> Mapping[str, Any]:
        """What `/health` says; strangers are told no more than that it is ready."""
        told: dict[str, Any] = {"version": protocol.VERSION, "ready": True}
        if trusted:
            told |= {"reward": self.name, "fingerprint": dict(self.fingerprint)}
        return told

    def trusts(self, header: str | None) -> bool:
        """Whether an `Authorization` header names the token, or none is needed."""
        given = (header or "").encode("utf-8", "replace")
        return not self.token or hmac.compare_digest(given, f"Bearer {self.token}".encode())


class Refusal(Exception):
    """A request that is answered by a status above 400 and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class RewardServer(ThreadingHTTPServer):
    """Serves a Service at (host, port); port 0 takes a free one. Raises UserError if it cannot."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, service: Service, host: str, port: int) -> None:
        self.service = service
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen at {host}:{port} ({error}): choose another --port or --host"
            ) from error

    def server_bind(self) -> None:
        """As the standard library does it, but for asking a name server who we are."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def stop(self, patience: float = 10.0) -> None:
        """Let the question in hand be answered, for `patience` seconds at most, and close."""
        if self.service.lock.acquire(timeout=patience):
            self.service.lock.release()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who hangs up is no news; anything else is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            _log(f"{client_address[0]} failed with {type(error).__name__}: {error}")


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = PATIENCE  # of a caller who says nothing

    def do_GET(self) -> None:
        if self.path.partition("?")[0].rstrip("/") != "/health":
            self._answer(404, {"error": "GET /health, or POST /"})
            return
        service = self.server.service
        self._answer(200, service.health(service.trusts(self.headers.get("Authorization"))))

    def do_POST(self) -> None:
        began, told = time.monotonic(), ""
        try:
            scores, told = self._scores()
            status, message = 200, json.loads(protocol.answered(scores))
        except Refusal as refusal:
            status, message = refusal.status, {"error": str(refusal)}
        except protocol.Malformed as error:
            status, message = 400, {"error": str(error)}
        except UserError as error:
            # What the reward refuses will be refused again; what broke may work the next time.
            status, message = 422 if error.__cause__ is None else 500, {"error": str(error)}
        told = told or " ".join(str(message["error"]).split())
        taken = 1000 * (time.monotonic() - began)
        _log(f"{self.client_address[0]} {status} {told}, {taken:.2f} ms")
        self._answer(status, message)

    def _scores(self) -> tuple[list[float], str]:
        service = self.server.service
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refusal(411, "send a Content-Length")
        size = int(length[:20])
        problem = self._problem(size)
        if problem is not None:
            self._discard(min(size, MOST_BYTES))  # who still speaks cannot hear
            raise problem
        if not service.places.acquire(blocking=False):
            self._discard(size)
            raise Refusal(429, f"{MOST_AT_ONCE} questions wait already")
        try:
            body = self.rfile.read(size)
            if len(body) < size:
                raise Refusal(400, f"the body ends after {len(body)} of {size} bytes")
            return service.scores(body)
        finally:
            service.places.release()

    def _problem(self, size: int) -> Refusal | None:
        service = self.server.service
        if not service.trusts(self.headers.get("Authorization")):
            return Refusal(401, "a token is needed: Authorization: Bearer TOKEN")
        if self.path.partition("?")[0] != "/":
            return Refusal(404, f"nothing is at {self.path[:80]!r}: POST /")
        if size > service.limit:
            return Refusal(413, f"{size} bytes, and {service.limit} at most: send fewer images")
        return None

    def _discard(self, size: int) -> None:
        while size > 0 and (part := self.rfile.read(min(size, 2**16))):
            size -= len(part)

    def _answer(self, status: int, message: Mapping[str, Any]) -> None:
        body = json.dumps(message).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        _log(f"{self.client_address[0]} {format % arguments}")


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
