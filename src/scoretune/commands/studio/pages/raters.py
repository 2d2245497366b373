"""Raters: invitations, and what their votes say of them and of the prompts."""

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

from scoretune.commands.studio import agreement, choosing
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
        **next_pair(studio),
    }


def next_pair(studio: Studio, note: str = "") -> dict[str, Any]:
    """How the next pair is chosen, and how it may be: also by rewards that were trained here."""
    now = studio.choosing.how
    ways = dict.fromkeys([choosing.RANDOM, choosing.VOTES, *map(str, studio.jobs.rewards()), now])
    return {
        "how": now,
        "ways": [(way, choosing.named(way)) for way in ways],
        "trouble": studio.choosing.problem,
        "changed": note,
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

    @router.post("/raters/next")
    def choose(request: Request, how: Annotated[str, Form(max_length=4000)]) -> Response:
        check_owner(request)
        if how not in [way for way, _ in next_pair(studio)["ways"]]:
            raise Refused(422, "pairs cannot be chosen so: reload the page")
        studio.choosing.choose(how)
        note = f"The next pairs are chosen {choosing.named(how)}."
        return studio.page(request, "next.html", **next_pair(studio, note))

    return router
