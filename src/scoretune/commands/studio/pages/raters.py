"""Raters: invitations, and what their votes say of them and of the prompts."""

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from scoretune.commands.studio import agreement
from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import Studio, check_owner

if TYPE_CHECKING:
    from fastapi import APIRouter

LONGEST = 60
"""Characters of a name."""
MOST_PROMPTS = 40
"""Prompts that are listed, the most disputed ones."""


def shown(studio: Studio, link: str = "", name: str = "") -> dict[str, Any]:
    votes, raters = studio.store.votes(), studio.store.raters()
    pairs = {pair.id: pair for pair in studio.store.pairs()}
    prompts = agreement.of_prompts(votes, pairs)
    return {
        "link": link,
        "name": name,
        "votes": len(votes),
        "skipped": len(votes) - len(agreement.counted(votes)),
        "judged": len({vote.pair for vote in votes}),
        "pairs": len(pairs),
        "alpha": agreement.alpha(votes),
        "raters": agreement.of_raters(votes, pairs, raters),
        "silent": [one.name for one in raters if not any(v.rater == one.id for v in votes)],
        "prompts": prompts[:MOST_PROMPTS],
        "more": max(0, len(prompts) - MOST_PROMPTS),
    }


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Form, Request, Response

    router = APIRouter()

    @router.get("/raters")
    def page(request: Request) -> Response:
        check_owner(request)
        return studio.page(request, "raters.html", **shown(studio))

    @router.post("/raters")
    def invite(
        request: Request, name: Annotated[str, Form(min_length=1, max_length=LONGEST)]
    ) -> Response:
        check_owner(request)
        name = name.strip()
        if not name or not name.isprintable():
            raise Refused(422, "a name is a few letters")
        if any(one.name == name for one in studio.store.raters()):
            raise Refused(409, "there is a rater of this name: choose another")
        _, token = studio.store.add_rater(name)
        link = f"{studio.address}/enter?{urlencode({'token': token})}"
        return studio.page(request, "invited.html", link=link, name=name)

    return router
