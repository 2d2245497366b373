"""Runs while they go on: their list, their curves, previews, alarms and log; and their stop."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoretune.commands.studio import jobs, live
from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import Studio, check_owner

if TYPE_CHECKING:
    from fastapi import APIRouter, Request

    from scoretune.commands.runs.index import Summary

PAUSE = 1.0
"""Seconds between two looks at a run's logs."""


def run_of(studio: Studio, name: str) -> "Summary":
    """A run of the studio's folder. Raises Refused for any other name."""
    run = live.known(studio.runs).get(name)
    if run is None:
        raise Refused(404, "there is no such run")
    return run


def listed(studio: Studio) -> list[dict[str, Any]]:
    return [
        {"name": name, "run": one, "state": live.state(one), "title": title(studio, one)}
        for name, one in live.known(studio.runs).items()
    ]


def title(studio: Studio, one: "Summary") -> str:
    path = Path(one.run)
    return path.name if path == studio.runs else str(path.relative_to(studio.runs))


async def events(request: "Request", run: Path, name: str) -> AsyncIterator[str]:
    """Server-sent events of a run until the page is closed."""
    follower = live.Follower(run)
    last = ""
    while not await request.is_disconnected():
        news = await asyncio.to_thread(lambda: list(follower.news()))
        for kind, data in news:
            yield f"event: {kind}\ndata: {json.dumps(data)}\n\n"
        state = "running" if await asyncio.to_thread(jobs.running, run) is not None else "idle"
        yield f"event: state\ndata: {json.dumps(state)}\n\n" if state != last else ": alive\n\n"
        last = state
        await asyncio.sleep(PAUSE)


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Request, Response
    from fastapi.responses import FileResponse, StreamingResponse

    router = APIRouter()

    @router.get("/runs")
    def page(request: Request) -> Response:
        check_owner(request)
        return studio.page(request, "runs.html", runs=listed(studio), folder=str(studio.runs))

    @router.get("/runs/{name}")
    def one(request: Request, name: str) -> Response:
        check_owner(request)
        run = run_of(studio, name)
        names = [path.stem for path in live.pictures(Path(run.run))]
        values = {"run": run, "name": name, "previews": names, "title": title(studio, run)}
        return studio.page(request, "run.html", state=live.state(run), text="", **values)

    @router.get("/runs/{name}/events")
    def follow(request: Request, name: str) -> Response:
        check_owner(request)
        stream = events(request, Path(run_of(studio, name).run), name)
        return StreamingResponse(stream, media_type="text/event-stream")

    @router.get("/runs/{name}/previews/{number}")
    def preview(request: Request, name: str, number: int) -> Response:
        check_owner(request)
        paths = live.pictures(Path(run_of(studio, name).run))
        if not 0 <= number < len(paths):
            raise Refused(404, "there is no such preview")
        return FileResponse(paths[number], media_type=f"image/{paths[number].suffix[1:]}")

    @router.post("/runs/{name}/stop")
    def stop(request: Request, name: str) -> Response:
        check_owner(request)
        jobs.stop(Path(run_of(studio, name).run))
        return studio.page(request, "note.html", text="It ends its update, saves, and stops.")

    return router
