"""The command line. Heavy imports live inside the verbs, so `--help` is quick."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from scoretune.commands import export, serve_reward
from scoretune.commands.families import verb
from scoretune.commands.gap import verb as gap_verb
from scoretune.commands.plan import verb as plan_verb
from scoretune.commands.runs import verb as runs_verb
from scoretune.core.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune diffusion models from rewards and preferences, in continuous time.",
)
pretrain_app = typer.Typer(no_args_is_help=True, help="Train the shipped model from nothing.")
app.add_typer(pretrain_app, name="pretrain")
# Verbs with a file of their own in verbs/: app.command()(module.verb), one line each.
app.command()(export.export)
app.command()(verb.families)
app.command()(plan_verb.plan)
app.command()(serve_reward.serve_reward)
app.command()(runs_verb.runs)

Changes = Annotated[list[str] | None, typer.Argument(help="Settings to change, as a.b=c.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object last.")]
Threads = Annotated[int, typer.Option(min=1, help="Torch threads.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
Folder = Annotated[Path | None, typer.Option("--run", help="Run folder (default: below runs/).")]


@app.command()
def demo(json_: Json = False, seed: Seed = 0, threads: Threads = 1, run: Folder = None) -> None:
    """Fine-tune the shipped miniature Stable Diffusion; ends with a report to look at."""
    from scoretune import recipes

    _train(recipes.demo().model_copy(update={"seed": seed}), run, threads, json_)


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A method, e.g. score_as_action; `train` alone lists all.")
    ] = None,
    changes: Changes = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this run folder; hardware.… may change.")
    ] = None,
    run: Folder = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="How many: starts them, or checks what a launcher started."),
    ] = None,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Train or fine-tune by a recipe, or go on with a run that was stopped."""
    from scoretune import recipes
    from scoretune.core import distributed
    from scoretune.training import overrides

    if distributed.needed(processes):
        raise typer.Exit(distributed.run_in(processes or 1, sys.argv[1:]))
    distributed.start(processes)

    if resume is not None:
        from scoretune.training.run_folder import resumed

        words = [word for word in (recipe, *(changes or [])) if word is not None]
        _train(resumed(resume, words), resume, threads, json_)
        return
    if recipe is None:
        raise UserError(f"name a recipe ({', '.join(recipes.RECIPES)}), or --resume a run folder")
    _train(overrides.changed(recipes.named(recipe), changes or []), run, threads, json_)


@app.command()
def show(recipe: str, changes: Changes = None) -> None:
    """Print a recipe's settings, changed as `train` would change them."""
    from scoretune import recipes
    from scoretune.training import overrides

    chosen = overrides.changed(recipes.named(recipe), changes or [])
    typer.echo(json.dumps(chosen.model_dump(), indent=2))


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model folder.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to draw, if the model knows prompts.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where to write: .png; without prompts also .npz.")
    ] = Path("samples.png"),
    count: Annotated[int, typer.Option(min=1, help="How many, without prompts.")] = 64,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the solver.")] = None,
    solver: Annotated[str | None, typer.Option(help="ddim, dpmpp_2m, heun, gddim, …")] = None,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Draw prompts with a fine-tuned model, side by side; or samples of a network of your own."""
    from scoretune.commands import sample as samples

    _threads(threads)
    told = samples.draw(run, prompts or [], out, steps=steps, solver=solver, seed=seed, count=count)
    typer.echo(told)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    features: Annotated[
        str | None,
        typer.Option(help="Pictures: compare in these too: reader, inception, my_module:name."),
    ] = None,
    json_: Json = False,
    threads: Threads = 1,
) -> None:
    """Measure a run's newest checkpoint on its held-out prompts or data."""
    from scoretune.commands import sample as samples

    _threads(threads)
    result = samples.measure_run(_recorded(run), run, features)
    typer.echo(json.dumps(result) if json_ else json.dumps(result, indent=2))


app.command()(gap_verb.gap)


@app.command()
def doctor(
    model: Annotated[
        str | None,
        typer.Option(help="Examine this too: a run or model folder, scenes or scenes-flow."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Measure laws with known answers on this machine; exits with 1 if one fails."""
    from scoretune.commands.doctor.doctor import run as examine

    _threads(threads)
    raise typer.Exit(examine(device, model, json_))


@app.command()
def reproduce(
    experiment: Annotated[str, typer.Argument(help="continuous-rl, contractive, …")],
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder (default: below reproduced/).")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of each arm.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    model: Annotated[Path | None, typer.Option(help="For the part `hard`: a model folder.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="For `images`: a folder with mnist/ and cifar10/.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="A rehearsal: numbers mean nothing.")] = False,
    json_: Json = False,
) -> None:
    """Repeat a paper's experiments in miniature; goes on where it was stopped."""
    from scoretune.commands.display import CellBars
    from scoretune.commands.reproduce.launch import Inputs
    from scoretune.commands.reproduce.launch import reproduce as repeat

    _threads(1)
    where = out or Path("reproduced") / experiment
    bars = CellBars()
    with bars.progress:
        results = repeat(
            experiment,
            where,
            parts=part or (),
            seeds=seeds,
            jobs=jobs,
            quick=quick,
            inputs=Inputs(model, data),
            watcher=bars.watcher,
        )
    if json_:
        typer.echo(json.dumps(results))
    else:
        for name in results:
            typer.echo(f"{name}: look at {where / name / 'README.md'}")


@pretrain_app.command()
def scenes(
    folder: Annotated[Path, typer.Argument(help="Where to work; holds the model at the end.")],
    threads: Threads = 1,
    seed: Seed = 0,
    caption_noise: Annotated[
        float, typer.Option(min=0, max=1, help="Share of captions that are wrong, at the end.")
    ] = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="Of the denoiser.")] = 14000,
    flow: Annotated[
        bool, typer.Option("--flow", help="The rectified-flow miniature (Stable Diffusion 3).")
    ] = False,
) -> None:
    """Train the miniature Stable Diffusion, its reader and its judge; resumes where it stopped."""
    from scoretune.commands.display import Bars
    from scoretune.commands.pretrain import lessons, pretrain

    _threads(threads)
    bars = Bars()
    with bars.progress:
        recipe = lessons.Recipe(seed=seed, caption_noise=caption_noise, denoiser_steps=steps)
        train = pretrain.pretrain_flow if flow else pretrain.pretrain
        model = train(folder, recipe, bars.show)
    typer.echo(f"the model is in {model}")


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2; Ctrl-C is 130."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: idle threads spin for the core
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # else they warn of torchvision
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        code = app(standalone_mode=False)  # a number where the command was stopped or wants help
    except UserError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:  # the disk or the network: nothing that a traceback would explain
        _fail(f"{error} (check the path, the permissions and the space on the disk)", 2)
    except Exception as error:
        # A wrong option is click's exception, with a ready message. typer may bring a click of its
        # own, so its class is not to be had. Anything else is a bug.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _fail(f"{message()} (see scoretune --help)", 2)
    if code:
        sys.exit(code)  # 130 after Ctrl-C: the display has already said how to go on


def _fail(text: str, code: int) -> NoReturn:
    typer.echo(f"scoretune: {' '.join(text.split())}", err=True)  # one line, whatever it quotes
    sys.exit(code)


def _threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _train(run: Any, folder: Path | None, threads: int, json_: bool) -> None:
    from scoretune.commands.display import Live
    from scoretune.commands.plan.suggestions import best_suggestion
    from scoretune.core import distributed
    from scoretune.training.engine import short_of_memory
    from scoretune.training.run import launch, ready
    from scoretune.training.run_folder import record

    _threads(threads)
    checked = ready(run)
    default = Path("runs") / f"{run.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    where = Path(distributed.agreed(str(folder or default)))
    command = shlex.join(["scoretune", *sys.argv[1:]])
    record(run, where, threads, command=command, checked=checked)
    main = distributed.team().main
    live = Live(run, where, quiet=not main)
    try:
        with live.progress:
            result = launch(run, where, live, checked)
    except KeyboardInterrupt:
        live.stopped()
        raise
    except Exception as error:
        if not short_of_memory(error):
            raise
        raise UserError(
            f"there is not enough memory ({error}): {best_suggestion(run)}; nothing is lost, go "
            f"on by scoretune train --resume {where} and that setting"
        ) from error
    distributed.stop()
    if not main:
        return
    if json_:
        typer.echo(json.dumps(result))
    elif "data" in result:
        _conclude(result)
    else:
        live.conclude(result)


def _conclude(result: dict[str, Any]) -> None:
    """The result of a run on data in a few lines, and where to look."""
    from scoretune.evaluate.report.data_page import result_lines

    for line in result_lines(result):
        typer.echo(line, err=True)
    where = result["run"]
    typer.echo(f"{result['seconds']:.0f} s; look at {where}/report.html", err=True)
    typer.echo(f"draw more: scoretune sample {where} --count 64 --out samples.png", err=True)


def _recorded(folder: Path) -> Any:
    from scoretune.training.run_folder import recorded

    return recorded(folder)
