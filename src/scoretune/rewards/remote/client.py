"""Questions to a URL, asked again while there is hope that they will be answered."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import Any, NoReturn
from urllib.parse import urlsplit

from scoretune.core.errors import UserError

TOKEN = "SCORETUNE_REWARD_TOKEN"
"""The environment variable that holds the token, which a run's record must not."""
MOST_BYTES = 16 * 2**20
MOST_WAIT = 120.0
RESUME = "then repeat the command, or go on with scoretune train --resume and the run's folder"


class _Passing(Exception):
    """A failure that may pass: try again, after `wait` seconds if the server said so."""

    def __init__(self, text: str, fix: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.fix, self.wait = fix, wait


@dataclass
class Breaker:
    """Stops asking a server that is down: after `most` failures in a row it refuses for `rest`
    seconds, then lets one question through. `clock` gives seconds."""

    most: int = 3
    rest: float = 30.0
    clock: Callable[[], float] = time.monotonic
    failures: int = 0
    opened: float | None = None

    @property
    def state(self) -> str:
        """`closed` (asks), `open for 12 s more` (refuses) or `half open` (asks once)."""
        if self.opened is None:
            return "closed"
        left = self.opened + self.rest - self.clock()
        return f"open for {left:.0f} s more" if left > 0 else "half open"

    def succeeded(self) -> None:
        """The server answered."""
        self.failures, self.opened = 0, None

    def failed(self) -> None:
        """The server did not answer, however often it was asked."""
        self.failures += 1
        if self.failures >= self.most:
            self.opened = self.clock()


@dataclass
class Line:
    """Questions to one URL, asked again while there is hope; one at a time.

    Connection errors, timeouts, 5xx and 429 are asked again up to `retries` times, after
    0.5 s * 2^k times a random number in [0.5, 1.5], and no sooner than Retry-After says. Nothing
    else is asked again. Raises UserError for a URL that is none.
    """

    url: str
    timeout: float = 30.0
    retries: int = 3
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    # Its own generator: waiting for a server must not move the run's random numbers.
    dice: random.Random = field(default_factory=random.Random)
    breaker: Breaker = field(init=False)
    _lock: Any = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        check_url(self.url)
        self.breaker = Breaker(clock=self.clock)

    def post(self, body: bytes) -> bytes:
        """The body of the answer. Raises UserError with the URL, what is wrong and the fix."""
        with self._lock:
            state = self.breaker.state
            if state.startswith("open"):
                many = self.breaker.failures
                self.fail(f"failed {many} times in a row (circuit breaker {state})", "see its log")
            attempt, last = 0, 0 if state == "half open" else self.retries
            while True:
                try:
                    answer = self._once(self.url, body, self.timeout)
                except _Passing as error:
                    if attempt == last or error.wait > MOST_WAIT:
                        self._give_up(attempt + 1, error)
                    backoff = min(0.5 * 2**attempt, 30.0) * self.dice.uniform(0.5, 1.5)
                    self.sleep(max(backoff, error.wait))
                    attempt += 1
                except UserError:  # it answered, if not as we wish
                    self.breaker.succeeded()
                    raise
                else:
                    self.breaker.succeeded()
                    return answer

    def _give_up(self, attempts: int, error: _Passing) -> NoReturn:
        self.breaker.failed()
        tries = f"{attempts} attempt{'s' if attempts > 1 else ''}"
        state = self.breaker.state
        resting = "" if state == "closed" else f", circuit breaker {state}"
        self.fail(f"{error} ({tries}{resting})", error.fix, error)

    def health(self) -> dict[str, Any]:
        """What `/health` says, asked once; empty where nobody answers or in another tongue."""
        parts = urlsplit(self.url)
        url = parts._replace(path=parts.path.rstrip("/") + "/health").geturl()
        try:
            body = self._once(url, None, min(self.timeout, 5.0))
            found = json.loads(body)
        except (_Passing, UserError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _once(self, url: str, body: bytes | None, timeout: float) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token := os.environ.get(TOKEN, "").strip():
            headers["Authorization"] = f"Bearer {_printable(token)}"
        request = urllib.request.Request(url, body, headers)
        until = self.clock() + timeout
        try:
            with _opener(url).open(request, timeout=timeout) as response:
                return self._whole(response, until)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._slow() from error
            what = str(reason) or type(reason).__name__
            raise _Passing(f"cannot be reached: {what}", "start it, or mend the url") from error

    def _whole(self, response: http.client.HTTPResponse, until: float) -> bytes:
        parts, size = [], 0
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                self.fail("gave an endless answer", "see that the url is a reward server's")
            if self.clock() > until:
                raise self._slow()
        return b"".join(parts)

    def _slow(self) -> _Passing:
        return _Passing(
            f"gave no answer within {self.timeout:g} s", "raise timeout=, or lower batch="
        )

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        told = f"answered {error.code} ({_explanation(error)})"
        if error.code == 429 or error.code >= 500:
            wait = _seconds(error.headers.get("Retry-After"))
            asked = f" and asks to wait {wait:.0f} s" if wait else ""
            raise _Passing(told + asked, "see its log", wait) from error
        fixes = {
            401: f"put its token into the environment variable {TOKEN}",
            403: f"put its token into the environment variable {TOKEN}",
            404: "mend the path of the url",
            405: "mend the path of the url",
            413: "lower batch=",
        }
        moved = f"give the url {error.headers.get('Location')}"
        self.fail(told, moved if error.code < 400 else fixes.get(error.code, "mend what it names"))

    def fail(self, what: str, fix: str, cause: Exception | None = None) -> NoReturn:
        """Raise the one line: the URL, what is wrong with it, the fix, and how to go on."""
        raise UserError(f"reward server {self.url} {what}: {fix}, {RESUME}") from cause


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a POST would become a GET, and the token would go elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Through the proxy that the environment names, but never to this machine itself."""
    host = urlsplit(url).hostname or ""
    near = host in ("localhost", "::1") or host.startswith("127.")
    return urllib.request.build_opener(
        _Straight, *([urllib.request.ProxyHandler({})] if near else [])
    )


def _printable(token: str) -> str:
    if not (token.isascii() and token.isprintable()):
        raise UserError(f"the environment variable {TOKEN} holds what no header can: copy it again")
    return token


def _explanation(error: urllib.error.HTTPError) -> str:
    """The server's own line on a refusal, or the status in words."""
    try:
        told = json.loads(error.read(2**16))["error"]
    except Exception:  # anything may stand in an error page, or nothing
        told = error.reason
    return " ".join(str(told).split())[:300]


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
