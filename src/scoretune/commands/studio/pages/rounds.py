"""Training on the votes, and the next round of pictures: the loop closes here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from scoretune.commands.studio import jobs, live, rounds
from scoretune.commands.studio.security import Refused
from scoretune.commands.studio.studio import Studio, check_owner
from scoretune.core.config import SHIPPED_MODELS
from scoretune.core.errors import UserError
from scoretune.core.files import write_whole
from scoretune.core.reading import read_json
from scoretune.evaluate.report.format import percent
from scoretune.recipes import PAIRS_OF_MINIATURE

if TYPE_CHECKING:
    from fastapi import APIRouter

FEWEST = 10
"""Decided votes below which nothing is worth learning."""
UPDATES = {"dpo": 100, "reward": 400, "online_dpo": 30}
"""What may be trained, and for how long unless the page says so."""
QUICKLY = "evaluation.per_task=10"
"""Of the shipped miniature, so that a round is measured at once."""
TUNING = ("objective", "optimiser", "sizes", "evaluation", "guard", "hardware", "seed")
REWARD = ("ties", "members", "width", "held_out", "batch", "learning_rate", "weight_decay", "seed")
SMALL = 64
"""Pixels of a side up to which a reward has a network of its own."""


class Order(NamedTuple):
    """What the page asks for: what is trained, for how long, by which reward, and settings."""

    kind: str
    updates: int
    reward: str
    settings: list[str]


def model_of(studio: Studio) -> str:
    """The model that the last round of pictures came from: the newest tuned one, or the first."""
    return str(next(iter(studio.jobs.models()), studio.model))


def settings_of(kind: str, text: str) -> list[str]:
    """Settings as words a.b=c. Raises Refused for any that is not free to change here: none that
    names files, models or functions to load is."""
    free = REWARD if kind == "reward" else TUNING
    words = text.split()
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name.partition(".")[0] not in free:
            raise Refused(422, f"{word!r} is no setting a.b=c of {', '.join(free)}")
    return words


def words_of(studio: Studio, order: Order) -> list[str]:
    """The command line of `scoretune train` for one round. Raises UserError."""
    length = f"updates={order.updates}"
    if order.kind == "reward":
        return ["reward", f"data={studio.where}", f"features={features_of(studio)}", length]
    source, scenes = f"model.source={model_of(studio)}", studio.model in SHIPPED_MODELS
    ends = [length, f"evaluation.every={order.updates}"]
    if order.kind == "dpo":
        fitting = [*PAIRS_OF_MINIATURE, QUICKLY] if scenes else []
        return ["dpo", source, *fitting, *ends, f"data={studio.where}"]
    words = [order.kind, source, *ends]
    rewards = {run.name: run for run in studio.jobs.rewards()}
    if order.reward not in rewards:
        raise UserError("online DPO needs a reward: train one on the votes first, and choose it")
    words.append(f"reward={rewards[order.reward]}")
    if scenes:
        return [*words, QUICKLY]
    prompts = studio.runs / "prompts.txt"  # those of the votes; a share of them is held out
    studio.runs.mkdir(parents=True, exist_ok=True)
    lines = (" ".join(prompt.split()) for prompt in studio.store.prompts())
    write_whole(prompts, "".join(f"{line}\n" for line in lines))
    return [*words, f"prompts={prompts}"]


def features_of(studio: Studio) -> str:
    """What a reward sees. Raises UserError where the pictures are large and nobody has said it."""
    if studio.features:
        return studio.features
    if all(max(one.width, one.height) <= SMALL for one in studio.store.pictures()):
        return "pixels"
    raise UserError(
        "a reward of such large pictures wants a CLIP or SigLIP: start the studio with --features "
        "openai/clip-vit-large-patch14, for example"
    )


def outcome(run: Path) -> str:
    """What a round came to, in a line; empty while there is no result."""
    try:
        result = read_json(run / "result.json")
        held = result["held_out"]
        low, high = percent(held["low"]), percent(held["high"])
        share = percent(held["accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f"agrees with {share} of held-out votes (95 % interval {low} to {high})"


def decided(studio: Studio) -> int:
    """How many votes there are that training learns from."""
    return sum(vote.choice in ("first", "second", "tie") for vote in studio.store.votes())


def shown(studio: Studio) -> dict[str, Any]:
    rewards = studio.jobs.rewards()
    listed = []
    for run in studio.jobs.rounds():
        lines = jobs.log_of(run).read_text("utf-8", "replace").replace("\r", "\n").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "starting")
        name = live.name_of(run) if (run / "run.json").is_file() else ""
        reward = str(run) if run in rewards else ""
        line = outcome(run) if reward else ""
        row = {"title": run.name, "name": name, "last": line or last[-200:], "reward": reward}
        listed.append(row | {"used": reward == studio.choosing.how})
    return {
        "decided": decided(studio),
        "fewest": FEWEST,
        "pairs": len(studio.ballots.pairs()),
        "model": model_of(studio),
        "round": rounds.latest(studio.store),
        "busy": studio.jobs.busy(),
        "rounds": listed,
        "rewards": [run.name for run in rewards],
        "updates": UPDATES,
    }


def routes(studio: Studio) -> "APIRouter":
    from fastapi import APIRouter, Form, Request, Response

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
        kind: Annotated[Literal["dpo", "reward", "online_dpo"], Form()] = "dpo",
        updates: Annotated[str, Form(max_length=6, pattern=r"^[0-9]*$")] = "",
        reward: Annotated[str, Form(max_length=100)] = "",
        settings: Annotated[str, Form(max_length=1000)] = "",
    ) -> Response:
        check_owner(request)
        length = int(updates or UPDATES[kind])
        if not length:
            raise Refused(422, "train for one update or more")
        order = Order(kind, length, reward, settings_of(kind, settings))
        if decided(studio) < FEWEST:
            raise UserError(f"there are fewer than {FEWEST} votes that say something: vote first")
        studio.jobs.start(model_of(studio), [*words_of(studio, order), *order.settings])
        return studio.page(request, "rounds_state.html", **shown(studio))

    @router.post("/rounds/stop")
    def stop(request: Request) -> Response:
        check_owner(request)
        for run in studio.jobs.rounds()[:1]:
            jobs.stop(run)
        return studio.page(request, "rounds_state.html", **shown(studio))

    @router.post("/rounds/use")
    def use(request: Request, reward: Annotated[str, Form(max_length=4000)]) -> Response:
        check_owner(request)
        if reward not in map(str, studio.jobs.rewards()):
            raise Refused(422, "this reward is not there: reload the page")
        studio.choosing.choose(reward)
        return studio.page(request, "rounds_state.html", **shown(studio))

    return router
