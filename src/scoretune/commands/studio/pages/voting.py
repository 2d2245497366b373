"""Voting on pairs, by keyboard or by buttons."""

from typing import TYPE_CHECKING, Annotated, Any

from scoretune.commands.studio.ballots import Shown
from scoretune.commands.studio.studio import Studio, rater
from scoretune.evaluate.report.format import duration

if TYPE_CHECKING:
    from fastapi import APIRouter


def shown(studio: Studio, voter: int, note: str = "") -> dict[str, Any]:
    """What the template of a ballot is filled with."""
    ballot = studio.ballots.current(voter)
    progress = studio.ballots.progress(voter)
    left = None if progress.seconds is None else duration(progress.seconds)
    values: dict[str, Any] = {"ballot": ballot, "progress": progress, "left": left, "note": note}
    if ballot is not None:
        first, second = ballot.pair.first, ballot.pair.second
        order = (first, second) if ballot.left == "first" else (second, first)
        values["samples"] = [studio.ballots.sample(number) for number in order]
    return values


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Form, Request, Response

    router = APIRouter()

    @router.get("/vote")
    def page(request: Request) -> Response:
        return studio.page(request, "vote.html", **shown(studio, rater(request)))

    @router.post("/vote")
    def vote(
        request: Request,
        ballot: Annotated[str, Form(max_length=100)],
        choice: Annotated[Shown, Form()],
        seconds: Annotated[float, Form()] = 0.0,
    ) -> Response:
        counted = studio.ballots.vote(rater(request), ballot, choice, seconds)
        note = "" if counted else "That vote was stored before: it counts once."
        return studio.page(request, "ballot.html", **shown(studio, rater(request), note))

    @router.post("/vote/undo")
    def undo(request: Request) -> Response:
        back = studio.ballots.undo(rater(request))
        note = "There is nothing to take back." if back is None else "Your last vote is taken back."
        return studio.page(request, "ballot.html", **shown(studio, rater(request), note))

    return router
