"""`server(url=http://host:8000)`, or the URL alone: a reward by `protocol`, and its HTTP client."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from scoretune.core.errors import UserError
from scoretune.rewards.cache import Cached, Pixels
from scoretune.rewards.remote import protocol

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
TOKEN = "SCORETUNE_REWARD_TOKEN"
"""The environment variable that holds the token, which a run's record must not."""
MOST_BYTES = 16 * 2**20
MOST_WAIT = 120.0  # seconds: a server that asks for more patience is not asked again
RESUME = "then repeat the command, or go on with scoretune train --resume and the run's folder"


@dataclass(frozen=True)
class Remote(Cached):
    """Has the server at `url` score pictures; without a gradient.

    `timeout` is in seconds, for a request of at most `batch` images; `retries` come after the first
    attempt that fails; a server that is busy is waited for up to `patience` seconds a request;
    `cache` scores are kept. Raises UserError for a URL that is none.
    """

    url: str
    timeout: float = 30.0
    retries: int = 3
    batch: int = 16
    cache: int = 4096
    patience: float = 1800.0

    def __post_init__(self) -> None:
        counts = 0 <= self.retries <= 1000 and self.batch >= 1 and self.cache >= 0
        if not (0 < self.timeout < 1e6 and 0 <= self.patience < 1e9 and counts):
            raise UserError(
                f"server(timeout={self.timeout:g}, retries={self.retries}, batch={self.batch}, "
                f"cache={self.cache}, patience={self.patience:g}): timeout must be above 0, batch "
                "1 or more, the others 0 or more, and none of them endless"
            )
        check_url(self.url)

    def fingerprint(self) -> Mapping[str, str]:
        """The URL, and what the server says of itself now."""
        health = self.client.health()
        served = health.get("fingerprint")
        served = served if isinstance(served, dict) else {}
        parts = {f"served {key}": json.dumps(value) for key, value in sorted(served.items())}
        return {"url": self.url, "served": str(health.get("reward", "unknown")), **parts}

    @cached_property
    def client(self) -> Client:
        """The HTTP client, with its connection settings."""
        return Client(self.url, self.timeout, self.retries, self.patience)

    def _score(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        def read(body: bytes) -> list[float]:
            try:
                return protocol.decode_response(body, len(prompts))
            except protocol.Cut as error:
                raise Transient(f"sent {error}", "see its log") from error

        try:
            return self.client.post(protocol.encode_request(pixels, prompts), read)
        except protocol.ProtocolError as error:
            self.client.fail(f"breaks the protocol: {error}", "mend the server or the url", error)


class Transient(Exception):
    """A failure that may pass: try again, after `wait` seconds if the server said so."""

    def __init__(self, text: str, fix: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.fix, self.wait = fix, wait


class Busy(Transient):
    """A server that is well and has too much to do: no failure until patience ends."""


@dataclass
class Client:
    """Requests to one URL, repeated while a failure may pass.

    Connection errors, timeouts, answers cut short and 5xx are retried up to `retries` times. 429
    and 503 are a busy server's, and asked again until `patience` seconds were waited in all. The
    k-th pause is 0.5 s * 2^k, at most 30 s, times a random number in [0.5, 1.5], and no shorter
    than Retry-After says. Nothing else is retried. Raises UserError for a URL that is none.
    """

    url: str
    timeout: float = 30.0
    retries: int = 3
    patience: float = 1800.0
    sleep: Callable[[float], None] = time.sleep
    # Its own generator: waiting for a server must not move the run's random numbers.
    random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        check_url(self.url)

    def post(self, body: bytes, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer's body. Raises UserError with the URL, what is wrong and
        the fix."""
        failures = busy = 0
        waited = 0.0
        while True:
            try:
                return read(self._request(self.url, body, self.timeout))
            except Busy as error:
                pause = self._pause(busy, error)
                busy += 1
                if error.wait > MOST_WAIT or waited + pause > self.patience:
                    self.fail(f"{error} (busy for {waited:.0f} s)", "raise patience=", error)
            except Transient as error:
                pause = self._pause(failures, error)
                failures += 1
                if error.wait > MOST_WAIT or failures > self.retries:
                    tries = f"{failures} attempt{'s' if failures > 1 else ''}"
                    self.fail(f"{error} ({tries})", error.fix, error)
            waited += pause
            self.sleep(pause)

    def health(self) -> dict[str, Any]:
        """What `/health` says, asked once; empty where nobody answers or not as JSON."""
        parts = urlsplit(self.url)
        url = parts._replace(path=parts.path.rstrip("/") + "/health").geturl()
        try:
            health = json.loads(self._request(url, None, min(self.timeout, 5.0)))
        except (Transient, UserError, ValueError, RecursionError):
            return {}
        return health if isinstance(health, dict) else {}

    def fail(self, what: str, fix: str, cause: Exception | None = None) -> NoReturn:
        """Raise the one line: the URL, what is wrong with it, the fix, and how to go on."""
        raise UserError(f"reward server {self.url} {what}: {fix}, {RESUME}") from cause

    @cached_property
    def _http(self) -> httpx2.Client:
        """Proxies of the environment, but never for this machine itself; no redirects.

        After a redirect a POST would become a GET, and the token would go elsewhere. A connection
        is closed after its answer: a server may have dropped it before the next batch.
        """
        import httpx2

        return httpx2.Client(
            verify=self.url.startswith("https:"),  # else it would read certificates for nothing
            limits=httpx2.Limits(max_keepalive_connections=0),
            trust_env=not _is_local(self.url),
        )

    def _pause(self, before: int, error: Transient) -> float:
        """Seconds before the next attempt, after as many failures of this kind before it."""
        backoff = min(0.5 * 2.0 ** min(before, 6), 30.0) * self.random.uniform(0.5, 1.5)
        return max(backoff, error.wait)

    def _request(self, url: str, body: bytes | None, timeout: float) -> bytes:
        """One attempt: POST with a body, GET without."""
        import httpx2

        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := os.environ.get(TOKEN, "").strip():
            headers["Authorization"] = f"Bearer {_printable(token)}"
        method, until = "GET" if body is None else "POST", time.monotonic() + timeout
        cutting = Deadline(timeout)
        try:
            with (
                cutting,
                self._http.stream(
                    method,
                    url,
                    content=body,
                    headers=headers,
                    timeout=timeout,
                    extensions={"trace": cutting.trace},
                ) as response,
            ):
                if not response.is_success:
                    self._refuse(response)
                answer = self._read(response, until)
            if cutting.passed:  # what was shut may look as if it had ended
                raise self._slow()
            return answer
        except httpx2.TimeoutException as error:
            raise self._slow() from error
        except httpx2.HTTPError as error:
            if cutting.passed:
                raise self._slow() from error
            what = str(error) or type(error).__name__
            raise Transient(f"cannot be reached: {what}", "start it, or mend the url") from error

    def _read(self, response: httpx2.Response, until: float) -> bytes:
        parts, size = [], 0
        for part in response.iter_bytes():  # as they arrive
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                self.fail("gave an endless answer", "see that the url is a reward server's")
            if time.monotonic() > until:
                raise self._slow()
        return b"".join(parts)

    def _slow(self) -> Transient:
        return Transient(
            f"gave no answer within {self.timeout:g} s", "raise timeout=, or lower batch="
        )

    def _refuse(self, response: httpx2.Response) -> NoReturn:
        """Raise what a status other than 2xx means."""
        status = response.status_code
        text = f"answered {status} ({_explanation(response)})"
        if status == 429 or status >= 500:
            wait = _seconds(response.headers.get("Retry-After"))
            pause = f" and asks to wait {wait:.0f} s" if wait else ""
            kind = Busy if status in (429, 503) else Transient
            raise kind(text + pause, "see its log", wait)
        fixes = {
            401: f"put its token into the environment variable {TOKEN}",
            403: f"put its token into the environment variable {TOKEN}",
            404: "mend the path of the url",
            405: "mend the path of the url",
            413: "lower batch=",
        }
        moved = f"give the url {response.headers.get('Location')}"
        self.fail(text, moved if status < 400 else fixes.get(status, "mend what it names"))


class Deadline:
    """Ends a request after so many seconds, by shutting its connection: a timeout of a single read
    never comes where headers drip. `passed`: it did."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._connection: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the connection, which the client tells of when it is there."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._connection = info["return_value"].get_extra_info("socket")

    def _shut(self) -> None:
        self.passed = True
        if self._connection is not None:
            with suppress(OSError):  # it has ended by itself
                self._connection.shutdown(socket.SHUT_RDWR)


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _printable(token: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"the environment variable {TOKEN} holds what no header can: copy it again")
    return token


def _explanation(response: httpx2.Response) -> str:
    """The server's own line on a refusal, or the status in words."""
    try:
        text = json.loads(next(response.iter_bytes(2**16), b""))["error"]
    except Exception:  # anything may stand in an error page, or nothing
        text = response.reason_phrase
    return " ".join(str(text).split())[:300]


def _seconds(header: str | None) -> float:
    """The wait in a Retry-After: seconds, or a date; 0 for none."""
    if not header:
        return 0.0
    if header.strip().isdigit():
        return float(header)
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def check_url(url: str) -> None:
    """Raise UserError for a URL that is none, or that holds a password."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or any(c.isspace() or not c.isprintable() for c in url):
        raise UserError(f"{url!r} is no url of a server: write http://host:port")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            f"the url of {parts.hostname} holds a password, which the run would record: put a "
            f"token into the environment variable {TOKEN}"
        )
