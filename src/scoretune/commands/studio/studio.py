"""What every page of the studio needs: the store, who may enter, and how a page is made.

Here and in `pages` no `from __future__ import annotations`: FastAPI reads the annotations of the
endpoints, which name what is imported inside a function.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoretune.commands.studio.ballots import Ballots
from scoretune.commands.studio.choosing import Choosing
from scoretune.commands.studio.editing import Editing
from scoretune.commands.studio.jobs import Jobs
from scoretune.commands.studio.keys import Keys, Session
from scoretune.commands.studio.security import Door, Refused
from scoretune.data.store import FILE, Rater, Sample
from scoretune.evaluate.report import render

if TYPE_CHECKING:
    from fastapi import Request, Response

    from scoretune.data.store.store import Store

PACKAGE = "scoretune.commands.studio"
KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
OWN = "studio.css"
"""The one style sheet that is a template: it begins with the colours of the reports."""


@dataclass(frozen=True)
class Studio:
    """A store that people vote on, with what serves it: `runs` is the folder of runs that it shows
    and starts, `address` what invitations begin with, `model` what rounds begin from, `choosing`
    which pairs come first, `editing` who carries out what people say, where there is an editor,
    `features` what a reward sees that is trained here."""

    store: "Store"
    where: str
    keys: Keys
    door: Door
    ballots: Ballots
    jobs: Jobs
    runs: Path
    address: str
    model: str
    choosing: Choosing
    editing: Editing | None = None
    features: str = ""

    def page(self, request: "Request", template: str, **values: Any) -> "Response":
        """A template as an answer to whoever asks."""
        from fastapi.responses import HTMLResponse

        session = who(request)
        common = {
            "csrf": self.keys.csrf(self.door.value(request.headers)),
            "owner": session.owner,
            "path": request.url.path,
            "version": version(),
            "rater": self.ballots.name(int(session.rater)),
        }
        return HTMLResponse(render.text(template, {**common, **values}, PACKAGE))


def who(request: "Request") -> Session:
    """Whose request this is; the guard has let it in."""
    session = request.scope["studio"]
    assert isinstance(session, Session)
    return session


def rater(request: "Request") -> int:
    """The id of the rater whose request this is."""
    return int(who(request).rater)


def body_of(studio: Studio, request: "Request", purpose: str, ticket: str) -> str:
    """What a page that was shown to this rater was about, by its ticket. Raises Refused."""
    body = studio.keys.body(purpose, rater(request), ticket)
    if body is None:
        raise Refused(403, "this page was not shown to you: reload it")
    return body


def sample_of(studio: Studio, number: int) -> Sample:
    """A sample of the store. Raises Refused for one that it has not."""
    try:
        return studio.store.sample(number)
    except KeyError as error:
        raise Refused(404, "the store has no such picture") from error


def check_owner(request: "Request") -> None:
    """Raise Refused for anybody but the one who started the studio."""
    if not who(request).owner:
        raise Refused(403, "this page is for whoever started the studio")


@cache
def static() -> Mapping[str, bytes]:
    """The files that pages load, by their names."""
    folder = resources.files(PACKAGE) / "static"
    files = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
    return files | {OWN: render.text(OWN, {}, PACKAGE).encode()}


@cache
def version() -> str:
    """What changes when one of these files does: pages ask for them by it."""
    parts = (content for _, content in sorted(static().items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def home(store: "Store") -> Path:
    """The folder where a studio keeps its secret: the store's own, or that of its pictures."""
    pictures = store.folder.folder
    return pictures.parent if (pictures.parent / FILE).is_file() else pictures


def owner_of(store: "Store") -> Rater:
    """The rater who started the studio; made at the first start."""
    for one in store.raters():
        if one.name == "owner" and one.kind == "person":
            return one
    return store.add_rater("owner")[0]
