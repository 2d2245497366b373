"""`scoretune studio`: a local web page where people vote, and a model learns from it."""

from __future__ import annotations

import socket
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from scoretune.commands.options import Threads, set_threads
from scoretune.core.errors import UserError
from scoretune.core.listening import listen

if TYPE_CHECKING:
    from scoretune.commands.studio.studio import Studio
    from scoretune.data.store.store import Store

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEMO = Path("runs/studio-demo")
PER_TASK, PER_PROMPT = 4, 3
"""Prompts of a task, and pictures of a prompt, that are drawn of a run or a model."""


class Place(NamedTuple):
    """A store, where it is, and the model whose pictures are in it."""

    store: Store
    where: str
    model: str


class Tools(NamedTuple):
    """Who carries out what people say and the reward that measures it, empty for none; how the next
    pair is chosen; and what a reward sees that is trained on the votes."""

    editor: str = ""
    reward: str = ""
    choice: str = "random"
    features: str = ""


def studio(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|STORE|MODEL]",
            help="A store of feedback; or a run or a model, whose pictures are drawn into one.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Vote on pictures of the shipped miniature.")
    ] = False,
    store: Annotated[
        Path | None, typer.Option(help="Where a run's or a model's store is (default: beside it).")
    ] = None,
    prompts: Annotated[str, typer.Option(help="What a run or a model draws.")] = "scenes",
    runs: Annotated[Path, typer.Option(help="Folder of runs to watch and start.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Listen here; others need --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the owner's token; else it is drawn anew.")
    ] = None,
    editor: Annotated[
        str,
        typer.Option(
            help="Carries out what people say: scenes, 'kontext(model=…)', … as in scoretune rpo, "
            "or none (default: scenes for the miniature's pictures)."
        ),
    ] = "",
    reward: Annotated[
        str,
        typer.Option(help="What an edit gains is measured by it (default: reader, or none)."),
    ] = "",
    choice: Annotated[
        str,
        typer.Option(
            "--next",
            help="Which pair comes next: random, votes (what these leave open), or the folder of "
            "a reward (where that is unsure).",
        ),
    ] = "random",
    features: Annotated[
        str,
        typer.Option(
            help="What a reward sees that is trained here: pixels, scenes, or a CLIP or SigLIP, as "
            "in scoretune train reward (default: by the pictures)."
        ),
    ] = "",
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the URL.")] = False,
    threads: Threads = 1,
) -> None:
    """Vote on pairs of pictures in a local web page, and train on the votes."""
    from scoretune.commands.studio import server
    from scoretune.commands.studio.app import application

    server.check_installed()
    _check(target, demo, host, token_file)
    set_threads(threads)
    at = listen(host, port)  # before anything is drawn: the port may be in use
    try:
        place = _demo() if target is None else _place(target, store, prompts)
        tools = _tools(place.store, Tools(editor, reward, choice, features))
        address, public = _address(host, at), host not in LOOPBACK
        made = assembled(place, runs, address, public=public, token_file=token_file, tools=tools)
        url = f"{address}/enter?token={made.keys.token}"
        typer.echo(f"studio at {url} (Ctrl-C stops)")
        if not no_browser:
            threading.Thread(target=_browse, args=(url,), daemon=True).start()
        server.serve(application(made), at)
    except KeyboardInterrupt:
        typer.echo("stopped; every vote is stored")
    finally:
        at.close()


def _check(target: str | None, demo: bool, host: str, token_file: Path | None) -> None:
    """Raise UserError for what does not go together, before anything is opened."""
    if host not in LOOPBACK and token_file is None:
        raise UserError(
            f"--host {host} is open to other machines: give --token-file FILE with a token of 16 "
            "or more characters, and use it behind TLS"
        )
    if demo and target is not None:
        raise UserError("--demo has a store of its own: leave out what follows studio")
    if target is None and not demo:
        raise UserError(
            "name a store, a run or a model: scoretune studio STORE; or try scoretune studio --demo"
        )


def _demo() -> Place:
    """The store of miniature pictures, made at the first start."""
    from scoretune.commands.display import counting
    from scoretune.commands.studio import demo
    from scoretune.data.store import open_store

    store = open_store(str(DEMO), create=True)
    with counting("drawing pictures to vote on") as note:
        demo.fill(store, note)
    return Place(store, str(DEMO), demo.MODEL)


def _place(target: str, store: Path | None, prompts: str) -> Place:
    """The store of a name; of a run or a model one that begins with its pictures.

    Raises UserError for what is none of these.
    """
    from scoretune.commands.display import counting
    from scoretune.commands.studio.rounds import first_round
    from scoretune.data.prompts import read_prompts
    from scoretune.data.store import is_store, open_store
    from scoretune.training.run_folder import load

    if "://" in target or is_store(target):
        opened = open_store(target)
        models = [one.model for one in opened.samples(source="model") if one.model]
        return Place(opened, target, models[-1] if models else "scenes")
    where = store or Path("runs") / f"studio-{Path(target).name}"
    policy = load(Path(target))
    texts = read_prompts(prompts).few(PER_TASK).texts
    opened = open_store(str(where), create=True)
    with counting("drawing pictures to vote on") as note:
        first_round(opened, policy, texts, model=target, per_prompt=PER_PROMPT, note=note)
    return Place(opened, str(where), target)


def _tools(store: Store, given: Tools) -> Tools:
    """What is meant where nothing is given: for prompts of the miniature its own editor, reward
    and features; "none" is none."""
    from scoretune.data.scenes.world import asks_by_text

    scenes = any(prompt in asks_by_text() for prompt in store.prompts()[:1])
    own = Tools("scenes", "reader", given.choice, "scenes") if scenes else Tools()
    names = (here or default for here, default in zip(given, own, strict=True))
    return Tools(*("" if name == "none" else name for name in names))


def assembled(
    place: Place,
    runs: Path,
    address: str,
    *,
    public: bool,
    token_file: Path | None,
    tools: Tools,
) -> Studio:
    """The studio of a store at an address; `public` where other machines reach it.

    Raises UserError for an editor, a reward or a way to choose that there is not.
    """
    from scoretune.commands.studio import keys
    from scoretune.commands.studio.ballots import Ballots
    from scoretune.commands.studio.choosing import Choosing, is_way
    from scoretune.commands.studio.editing import Editing
    from scoretune.commands.studio.jobs import Jobs
    from scoretune.commands.studio.security import Door
    from scoretune.commands.studio.studio import Studio, home

    own = keys.opened(home(place.store), token_file)
    port = address.rpartition(":")[2]
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    if public:
        hosts |= {f"{name}:{port}" for name in (socket.gethostname(), socket.getfqdn())}
    if not is_way(tools.choice):
        raise UserError(
            f"--next {tools.choice} is none: give random, votes, or a folder that scoretune train "
            "reward made"
        )
    choosing = Choosing(place.store, tools.choice)
    ballots, editing = Ballots(place.store, own, choosing.order), None
    if tools.editor:
        editing = Editing(place.store, tools.editor, tools.reward, after=ballots.lay)
    return Studio(
        store=place.store,
        where=place.where,
        keys=own,
        door=Door(own, frozenset(hosts), f"scoretune-{port}", public),
        ballots=ballots,
        jobs=Jobs(place.where, runs),
        runs=runs,
        address=address,
        model=place.model,
        choosing=choosing,
        editing=editing,
        features=tools.features,
    )


def _address(host: str, at: socket.socket) -> str:
    """What the URL begins with; the machine's name where it listens everywhere."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{at.getsockname()[1]}"


def _browse(url: str) -> None:
    with suppress(webbrowser.Error):  # the URL is printed
        webbrowser.open(url)
