"""Ranking up to four pictures of a prompt; those with one rank are tied."""

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

from scoretune.commands.studio.ballots import clamped
from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import Studio, body_of, rater

if TYPE_CHECKING:
    from fastapi import APIRouter

MOST = 4
"""Pictures that one can keep apart at a glance."""
FEWEST = 3
"""Two are a pair: those are voted on."""


def shown(studio: Studio, voter: int, note: str = "") -> dict[str, Any]:
    """A prompt that this rater has not ranked, with its pictures in a random order."""
    ranked = {ranking.prompt for ranking in studio.store.rankings(rater=voter)}
    groups: dict[str, list[Any]] = defaultdict(list)
    for sample in studio.store.samples():
        groups[sample.prompt].append(sample)
    many = {prompt: group for prompt, group in groups.items() if len(group) >= FEWEST}
    left = [prompt for prompt in many if prompt not in ranked]
    values = {"note": note, "done": len(many) - len(left), "total": len(many), "samples": []}
    if not left:
        return values
    prompt = studio.ballots.rng.choice(left)
    samples = studio.ballots.rng.sample(many[prompt], min(MOST, len(many[prompt])))
    ticket = studio.keys.ticket("rank", voter, "-".join(str(sample.id) for sample in samples))
    return values | {"prompt": prompt, "samples": samples, "ticket": ticket}


def ordered(ids: list[int], ranks: list[int]) -> list[list[int]]:
    """The ids from best to worst; those of one rank share a list."""
    groups = defaultdict(list)
    for number, rank in zip(ids, ranks, strict=True):
        groups[rank].append(number)
    return [groups[rank] for rank in sorted(groups)]


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Form, Request, Response

    router = APIRouter()

    @router.get("/rank")
    def page(request: Request) -> Response:
        return studio.page(request, "rank.html", **shown(studio, rater(request)))

    @router.post("/rank")
    async def rank(
        request: Request,
        ticket: Annotated[str, Form(max_length=200)],
        seconds: Annotated[float, Form()] = 0.0,
    ) -> Response:
        voter = rater(request)
        body = body_of(studio, request, "rank", ticket)
        ids = [int(number) for number in body.split("-")]
        form = await request.form()
        given = [str(form.get(f"rank{number}", "")) for number in ids]
        if not all(rank in [str(n + 1) for n in range(MOST)] for rank in given):
            raise Refused(422, f"give every picture a rank from 1 to {len(ids)}")
        studio.store.add_ranking(
            key=ticket,
            rater=voter,
            prompt=studio.store.sample(ids[0]).prompt,
            order=ordered(ids, [int(rank) for rank in given]),
            seconds=clamped(seconds),
        )
        return studio.page(request, "ranks.html", **shown(studio, voter, "Your ranking is stored."))

    return router
