"""What every request must pass before the studio sees it, and what every answer carries.

A request needs the right Host (a name that an attacker points at this machine is refused), a
session's cookie, and, if it changes something, the right Origin and the session's CSRF token. Its
body is bounded, and so is how often one asks.
"""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from scoretune.commands.studio.keys import Keys, Session, same

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ENTRANCE = "/enter"
"""The one path without a cookie: it takes a token."""
READS = ("GET", "HEAD")
MOST_BYTES = 64 * 2**10
MOST_UPLOAD = 16 * 2**20
UPLOADS = "/upload"
"""The ending of paths that take a picture."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Refused(Exception):
    """A request that gets a status of 400 or above and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Rate:
    """How often each of many may do something: a bucket of `burst`, filled by `rate` a second."""

    rate: float
    burst: float
    most: int = 10_000
    buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def take(self, who: str, now: float | None = None, cost: float = 1.0) -> bool:
        """Whether `who` may do it once more; with `cost` 0, whether it might."""
        now = time.monotonic() if now is None else now
        with self.lock:
            if len(self.buckets) > self.most:
                self.buckets.clear()
            left, since = self.buckets.get(who, (self.burst, now))
            left = min(self.burst, left + (now - since) * self.rate)
            allowed = left >= max(cost, 1.0)
            self.buckets[who] = (left - cost if allowed else left, now)
            return allowed


class Request(NamedTuple):
    """What of a request matters here."""

    method: str
    path: str
    headers: Mapping[str, str]
    peer: str

    @classmethod
    def of(cls, scope: Scope) -> Request:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        client = scope.get("client") or ("?", 0)
        return cls(scope.get("method", "GET"), scope["path"], headers, client[0])


@dataclass
class Door:
    """Who is let in. `hosts` are what Host may name; `public` that any address of this machine may
    be named too, which no foreign name is. A cookie is called `cookie`, a studio of its own each.
    """

    keys: Keys
    hosts: frozenset[str]
    cookie: str
    public: bool = False
    requests: Rate = field(default_factory=lambda: Rate(rate=40, burst=200))
    failures: Rate = field(default_factory=lambda: Rate(rate=0.2, burst=10))

    def session(self, request: Request) -> Session | None:
        """Whose request this is; None at the entrance. Raises Refused."""
        self._check_host(request.headers.get("host", ""))
        if request.path == ENTRANCE:
            if request.method not in READS:
                raise Refused(405, "the entrance is only read")
            if not self.failures.take(request.peer, cost=0.0):
                raise Refused(429, "too many wrong tokens: wait a minute")
            return None
        value = self.value(request.headers)
        session = self.keys.session(value) if value else None
        if session is None:
            if not self.failures.take(f"cookie {request.peer}", cost=1.0 if value else 0.1):
                raise Refused(429, "too many requests without a session: wait a minute")
            raise Refused(401, "no session: open the URL that the studio printed, or your link")
        if not self.requests.take(f"{session.owner} {session.rater}"):
            raise Refused(429, "too many requests: wait a few seconds")
        if request.method not in READS:
            self._check_change(request, value)
        return session

    def value(self, headers: Mapping[str, str]) -> str:
        """The value of the studio's cookie; empty without one."""
        for piece in headers.get("cookie", "").split(";"):
            name, _, value = piece.strip().partition("=")
            if name == self.cookie:
                return value
        return ""

    def _check_host(self, host: str) -> None:
        if host in self.hosts:
            return
        name = re.sub(r":\d+$", "", host).strip("[]")
        if self.public and _is_address(name):
            return
        raise Refused(421, "this is not the address of the studio: open the URL that it printed")

    def _check_change(self, request: Request, cookie: str) -> None:
        if request.method != "POST":
            raise Refused(405, "changes are made by POST")
        origin = request.headers.get("origin", "")
        if origin.partition("://")[2] != request.headers.get("host", "") or not origin:
            raise Refused(403, "a change from another page is refused")
        if not same(request.headers.get("x-csrf-token", ""), self.keys.csrf(cookie)):
            raise Refused(403, "the page is of another session: reload it")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Guard:
    """An ASGI application that lets through to `app` what `door` lets in."""

    app: App
    door: Door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request.of(scope)
        answer = _with_headers(send)
        try:
            session = self.door.session(request)
            limit = MOST_UPLOAD if request.path.endswith(UPLOADS) else MOST_BYTES
            body = await _body(request, receive, limit)
        except Refused as refusal:
            await _refuse(answer, refusal, page=request.method in READS)
            return
        scope["studio"] = session
        await self.app(scope, _replayed(body, receive), answer)


async def _body(request: Request, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises Refused above the limit, before it is read where it says so."""
    if request.method in READS:
        return b""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit:
        raise Refused(413, f"more than {limit >> 10} KiB are refused")
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the connection was closed")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > limit:
            raise Refused(413, f"more than {limit >> 10} KiB are refused")
    return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` as the application sees it: the body once, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def once() -> Message:
        return waiting.pop() if waiting else await receive()

    return once


def _with_headers(send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", [])}
            more = {**HEADERS, "cache-control": "no-store"}
            extra = [(k.encode(), v.encode()) for k, v in more.items() if k.encode() not in there]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return answer


async def _refuse(send: Send, refusal: Refused, *, page: bool) -> None:
    text = str(refusal)
    if page:
        text = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width"><title>scoretune studio</title><main><h1>scoretune '
            f"studio</h1><p>{escape(text[:1].upper() + text[1:])}.</p></main></html>"
        )
    kind = b"text/html; charset=utf-8" if page else b"text/plain; charset=utf-8"
    start: Message = {
        "type": "http.response.start",
        "status": refusal.status,
        "headers": [(b"content-type", kind), (b"content-length", str(len(text.encode())).encode())],
    }
    if refusal.status == 413:
        start["headers"].append((b"connection", b"close"))
    await send(start)
    await send({"type": "http.response.body", "body": text.encode()})
