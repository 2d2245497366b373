"""The way in: a token becomes a cookie. And what pages load: files, and pictures by sha256."""

from typing import TYPE_CHECKING

from scoretune.commands.studio.keys import LASTING, Session
from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import KINDS, Studio, owner_of, static

if TYPE_CHECKING:
    from fastapi import APIRouter

PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
LASTS = "private, max-age=31536000, immutable"
ENTERED = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>scoretune studio</title>'
    '<link rel="icon" href="/static/icon.svg">'
    '<meta http-equiv="refresh" content="0;url=/vote">'
    '<p><a href="/vote">To the studio</a></p></html>'
)
"""Not a redirect: a browser that comes from another site would not send the new cookie with it."""


def session_of(studio: Studio, token: str) -> Session | None:
    """Whom a token lets in."""
    if studio.keys.is_owner(token):
        return Session(str(owner_of(studio.store).id), owner=True)
    found = studio.store.rater_by_token(token)
    return None if found is None else Session(str(found.id), owner=False)


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Request, Response
    from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

    router = APIRouter()

    @router.get("/")
    def home() -> Response:
        return RedirectResponse("/vote", status_code=303)

    @router.get("/enter")
    def enter(request: Request, token: str = "") -> Response:
        session = session_of(studio, token)
        if session is None:
            studio.door.failures.take(request.client.host if request.client else "?")
            raise Refused(401, "this link is not valid: ask for a new one")
        answer = HTMLResponse(ENTERED)
        answer.set_cookie(
            studio.door.cookie,
            studio.keys.cookie(session),
            max_age=LASTING,
            httponly=True,
            samesite="strict",
        )
        return answer

    @router.get("/static/{name}")
    def file(name: str) -> Response:
        content, kind = static().get(name), KINDS.get(name.rpartition(".")[2])
        if content is None or kind is None:
            raise Refused(404, "there is no such file")
        return Response(content, media_type=kind, headers={"cache-control": LASTS})

    @router.get("/pictures/{sha256}")
    def picture(sha256: str) -> Response:
        try:
            path = studio.store.picture(sha256)
        except KeyError as error:
            raise Refused(404, "the store has no such picture") from error
        kind = PICTURES.get(path.suffix)
        if kind is None:
            raise Refused(404, "the store has no such picture")
        return FileResponse(path, media_type=kind, headers={"cache-control": LASTS})

    return router
