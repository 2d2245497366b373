"""The command line: one line a verb. Heavy imports live inside the verbs, so `--help` is quick."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import scoretune
from scoretune.commands import evaluate, export, sample, serve_reward, train
from scoretune.commands.doctor import verb as doctor
from scoretune.commands.families import verb as families
from scoretune.commands.options import Json, Threads
from scoretune.commands.options import set_threads as _threads
from scoretune.commands.plan import verb as plan
from scoretune.commands.pretrain import verb as pretrain
from scoretune.commands.reproduce import verb as reproduce
from scoretune.commands.runs import verb as runs
from scoretune.core.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune diffusion models from rewards and preferences, in continuous time.",
)
app.command()(train.demo)
app.command()(train.train)
app.command()(train.show)
app.command()(plan.plan)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(runs.runs)
app.command()(families.families)
app.command()(serve_reward.serve_reward)
app.command()(doctor.doctor)
app.command()(reproduce.reproduce)
pretrain_app = typer.Typer(no_args_is_help=True, help="Train the shipped model from nothing.")
pretrain_app.command()(pretrain.scenes)
app.add_typer(pretrain_app, name="pretrain")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scoretune {scoretune.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it, and stop."),
    ] = False,
) -> None:
    pass


@app.command()
def gap(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, or scenes.")],
    reward: Annotated[
        str | None, typer.Option(help="reader, module:function, … (default: the run's own).")
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(help="Put this LoRA, a folder or .safetensors, on the model.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps.")] = "5,10,20,50",
    eta: Annotated[str, typer.Option(help="Stochasticities; 0 is the ODE.")] = "0,0.5,1,1.2,1.5",
    solver: Annotated[
        str, typer.Option(help="gddim, ddim_eta, euler_maruyama, exponential, heun, …")
    ] = "gddim",
    prompts: Annotated[
        str | None, typer.Option(help="File with one a line (default: the held-out ones).")
    ] = None,
    per_task: Annotated[int | None, typer.Option(min=1, help="Scenes: prompts a task.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Of all noise (default: the run's).")
    ] = None,
    fine: Annotated[
        int, typer.Option(min=0, help="Steps that the bias refers to; 0: no bias.")
    ] = 100,
    before: Annotated[bool, typer.Option(help="The pretrained model too.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder (default: the run's gap/, or below gaps/).")
    ] = None,
    json_: Json = False,
    threads: Threads = 1,
) -> None:
    """What noise in the sampler is worth: reward by steps, stochasticity and solver."""
    from scoretune.commands.display import CellBars
    from scoretune.commands.gap import figure, measure

    _threads(threads)
    asked = measure.Asked(
        steps=measure.listed("steps", steps, int),
        etas=measure.listed("eta", eta, float),
        solvers=tuple(name.strip() for name in solver.split(",") if name.strip()),
        prompts=prompts,
        per_task=per_task,
        seed=seed,
        fine=fine,
        before=before,
    )
    bars = CellBars()
    try:
        with bars.progress:
            watch = bars.watcher("gap")
            result = measure.measure(model, asked, reward, lora=lora, out=out, watch=watch)
    except KeyboardInterrupt:
        bars.console.print("scoretune: stopped; the same command goes on from there")
        raise
    if json_:
        typer.echo(json.dumps(result))
    else:
        figure.show_table(result)
        typer.echo(f"look at {Path(result['out']) / 'gap.png'}")


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
