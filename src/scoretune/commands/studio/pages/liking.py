"""Liking single pictures, or not."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from scoretune.commands.studio.ballots import clamped
from scoretune.commands.studio.studio import Studio, body_of, rater

if TYPE_CHECKING:
    from fastapi import APIRouter


def shown(studio: Studio, voter: int, note: str = "") -> dict[str, Any]:
    """A picture that this rater has not judged alone."""
    judged = {like.sample for like in studio.store.likes(rater=voter)}
    samples = studio.store.samples()
    left = [sample for sample in samples if sample.id not in judged]
    values = {"note": note, "done": len(samples) - len(left), "total": len(samples), "sample": None}
    if not left:
        return values
    sample = studio.ballots.rng.choice(left)
    return values | {"sample": sample, "ticket": studio.keys.ticket("like", voter, str(sample.id))}


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Form, Request, Response

    router = APIRouter()

    @router.get("/like")
    def page(request: Request) -> Response:
        return studio.page(request, "like.html", **shown(studio, rater(request)))

    @router.post("/like")
    def like(
        request: Request,
        ticket: Annotated[str, Form(max_length=100)],
        choice: Annotated[Literal["like", "dislike", "skip"], Form()],
        seconds: Annotated[float, Form()] = 0.0,
    ) -> Response:
        voter = rater(request)
        body = body_of(studio, request, "like", ticket)
        if choice != "skip":
            studio.store.add_like(
                key=ticket,
                rater=voter,
                sample=int(body),
                liked=choice == "like",
                seconds=clamped(seconds),
            )
        return studio.page(request, "single.html", **shown(studio, voter))

    return router
