"""The studio as one ASGI application: its pages, what they answer to errors, and the guard."""

import traceback
from typing import TYPE_CHECKING

from scoretune.commands.studio.pages import (
    entrance,
    liking,
    ranking,
    raters,
    reasons,
    rounds,
    runs,
    voting,
)
from scoretune.commands.studio.security import App, Guard, Refused
from scoretune.commands.studio.studio import PACKAGE, Studio
from scoretune.core.errors import UserError, first_line, one_line
from scoretune.evaluate.report import render

if TYPE_CHECKING:
    from fastapi import Request, Response

PAGES = (entrance, voting, ranking, liking, reasons, raters, runs, rounds)


def application(studio: Studio) -> App:
    """Everything that is served, behind the guard."""
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for page in PAGES:
        app.include_router(page.routes(studio))

    @app.exception_handler(Refused)
    def refused(request: "Request", error: Refused) -> "Response":
        return problem(request, error.status, str(error))

    @app.exception_handler(UserError)
    def mended(request: "Request", error: UserError) -> "Response":
        return problem(request, 409, str(error))

    @app.exception_handler(HTTPException)
    def other(request: "Request", error: HTTPException) -> "Response":
        return problem(request, error.status_code, "there is no such page")

    @app.exception_handler(RequestValidationError)
    def unread(request: "Request", error: RequestValidationError) -> "Response":
        first = error.errors()[0]
        return problem(request, 422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(OSError)
    def disk(request: "Request", error: OSError) -> "Response":
        return problem(request, 507, f"nothing was stored: {first_line(error)}")

    @app.exception_handler(Exception)
    def bug(request: "Request", error: Exception) -> "Response":
        traceback.print_exception(error)
        return problem(request, 500, "the studio made a mistake: its terminal says which")

    return Guard(app, studio.door)


def problem(request: "Request", status: int, text: str) -> "Response":
    """One clear line: a page for whoever opens one, plain text for a script."""
    from fastapi.responses import HTMLResponse, PlainTextResponse

    line = one_line(text)
    line = line[:1].upper() + line[1:]
    if "hx-request" in request.headers or request.method != "GET":
        return PlainTextResponse(line, status)
    return HTMLResponse(render.text("problem.html", {"text": line}, PACKAGE), status)
