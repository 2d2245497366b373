"""The studio's secret, and what it signs: sessions, tokens against forged requests, and ballots.

The secret lives beside the store, so that whoever votes goes on after a restart; the token of the
URL is drawn anew at every start, unless a file holds one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from scoretune.core.errors import UserError

NAME = "studio.key"
BYTES = 32
SHORTEST = 16
"""Characters of a token that one writes oneself."""
LASTING = 30 * 24 * 3600
"""Seconds that a session lasts."""


@dataclass(frozen=True)
class Session:
    """Who asks: a rater's id, and whether it is the one who started the studio."""

    rater: str
    owner: bool


@dataclass(frozen=True)
class Keys:
    """The secret that signs, and the token that lets the owner in."""

    secret: bytes
    token: str

    def sign(self, purpose: str, *parts: str) -> str:
        """HMAC-SHA256 of the parts for one purpose, 32 hexadecimal digits."""
        text = "\0".join((purpose, *parts)).encode("utf-8", "replace")
        return hmac.new(self.secret, text, hashlib.sha256).hexdigest()[:32]

    def is_owner(self, token: str) -> bool:
        """Whether this is the token of the URL that was printed."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token.encode())

    def cookie(self, session: Session, now: float | None = None) -> str:
        """A session as the value of a cookie, that nobody else can write."""
        role = "owner" if session.owner else "rater"
        issued = str(int(time.time() if now is None else now))
        return ".".join((role, session.rater, issued, self.sign("s", role, session.rater, issued)))

    def session(self, cookie: str, now: float | None = None) -> Session | None:
        """The session of a cookie's value; None for one that is forged or too old."""
        role, _, rest = cookie.partition(".")
        body, _, signature = rest.rpartition(".")
        rater, _, issued = body.rpartition(".")
        if not same(signature, self.sign("s", role, rater, issued)):
            return None
        age = (time.time() if now is None else now) - int(issued)
        return Session(rater, role == "owner") if age <= LASTING else None

    def ticket(self, purpose: str, rater: int, body: str) -> str:
        """A text for one showing of a page to a rater, which is the key of what they answer."""
        body = f"{body}.{secrets.token_hex(8)}"
        return f"{body}.{self.sign(purpose, str(rater), body)}"

    def body(self, purpose: str, rater: int, ticket: str) -> str | None:
        """The body of a ticket; None for one that was not made for this rater."""
        body, _, signature = ticket.rpartition(".")
        right = same(signature, self.sign(purpose, str(rater), body))
        return body.rpartition(".")[0] if right else None

    def csrf(self, cookie: str) -> str:
        """What a page of this session must send with every change."""
        return self.sign("csrf", cookie)


def same(given: str, right: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def opened(folder: Path, token_file: Path | None = None) -> Keys:
    """The keys of a store's folder; its secret is made at the first start, for its owner's eyes.

    Raises UserError for a token file that cannot be read or is too short to be a secret.
    """
    return Keys(_secret(folder / NAME), _token(token_file))


def _secret(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{NAME}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_bytes(BYTES))
    finally:
        os.close(handle)
    try:
        os.link(aside, path)  # of two studios that start at once one makes it
    except FileExistsError:
        pass
    finally:
        aside.unlink()
    secret = path.read_bytes()
    if len(secret) != BYTES:
        raise UserError(f"{str(path)!r} is damaged: delete it; everybody then enters anew")
    return secret


def _token(path: Path | None) -> str:
    if path is None:
        return secrets.token_urlsafe(24)
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read --token-file {str(path)!r} ({error})") from error
    if len(token) < SHORTEST or not token.isascii() or len(token.split()) != 1:
        raise UserError(
            f"--token-file {str(path)!r} must hold one word of {SHORTEST} or more letters: "
            "make one by: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token
