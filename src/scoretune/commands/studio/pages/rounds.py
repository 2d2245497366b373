"""Training on the votes, and the next round of pictures: the loop closes here."""

from typing import TYPE_CHECKING, Annotated, Any

from scoretune.commands.studio import jobs, live, rounds
from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import Studio, check_owner

if TYPE_CHECKING:
    from fastapi import APIRouter

FEWEST = 10
"""Decided votes below which nothing is worth learning."""
MINIATURE = (
    *("objective.beta=100", "optimiser.learning_rate=3e-3", "hardware.device_batch=0"),
    "evaluation.per_task=10",
)
"""The shipped miniature wants larger steps than a Stable Diffusion 1.5, and is measured at once."""


def model_of(studio: Studio) -> str:
    """The model that the last round of pictures came from: the newest tuned one, or the first."""
    for run in studio.jobs.rounds():
        if (run / "result.json").is_file():
            return str(run)
    return studio.model


FREE = ("objective", "optimiser", "sizes", "evaluation", "guard", "hardware", "seed")
"""Settings that may be changed here: none that names files, models or functions to load."""


def settings_of(text: str) -> list[str]:
    """Settings as words a.b=c. Raises Refused for any that is not free to change here."""
    words = text.split()
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name.partition(".")[0] not in FREE:
            raise Refused(422, f"{word!r} is no setting a.b=c of {', '.join(FREE)}")
    return words


def words_of(studio: Studio, updates: int) -> list[str]:
    """The command line of `scoretune train` for one round."""
    model = model_of(studio)
    words = ["dpo", f"data={studio.where}", f"model.source={model}", f"updates={updates}"]
    words.append(f"evaluation.every={updates}")
    return words + list(MINIATURE if studio.model == "scenes" else ())


def shown(studio: Studio) -> dict[str, Any]:
    votes = studio.store.votes()
    decided = [vote for vote in votes if vote.choice in ("first", "second", "tie")]
    listed = []
    for run in studio.jobs.rounds():
        known = (run / "run.json").is_file()
        lines = jobs.log_of(run).read_text("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "starting")
        name = live.name_of(run) if known else ""
        listed.append({"title": run.name, "name": name, "last": last[-200:]})
    return {
        "decided": len(decided),
        "fewest": FEWEST,
        "pairs": len(studio.ballots.pairs()),
        "model": model_of(studio),
        "round": rounds.latest(studio.store),
        "busy": studio.jobs.busy(),
        "rounds": listed,
    }


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Form, Request, Response

    from scoretune.core.errors import UserError

    router = APIRouter()

    @router.get("/rounds")
    def page(request: Request) -> Response:
        check_owner(request)
        return studio.page(request, "rounds.html", **shown(studio))

    @router.get("/rounds/state")
    def state(request: Request) -> Response:
        check_owner(request)
        return studio.page(request, "rounds_state.html", **shown(studio))

    @router.post("/rounds")
    def start(
        request: Request,
        updates: Annotated[int, Form(ge=1, le=100_000)] = 100,
        settings: Annotated[str, Form(max_length=1000)] = "",
    ) -> Response:
        check_owner(request)
        more = settings_of(settings)
        if shown(studio)["decided"] < FEWEST:
            raise UserError(f"there are fewer than {FEWEST} votes that say something: vote first")
        studio.jobs.start(model_of(studio), [*words_of(studio, updates), *more])
        return studio.page(request, "rounds_state.html", **shown(studio))

    return router
