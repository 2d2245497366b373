"""The command line: one line a verb. Heavy imports live inside the verbs, so `--help` is quick."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

import scoretune
from scoretune.commands import compress, evaluate, export, prefer_text, sample, serve_reward, train
from scoretune.commands.control import verb as control
from scoretune.commands.data import verb as data
from scoretune.commands.doctor import verb as doctor
from scoretune.commands.families import verb as families
from scoretune.commands.feedback import verb as feedback
from scoretune.commands.gap import verb as gap
from scoretune.commands.plan import verb as plan
from scoretune.commands.pretrain import verb as pretrain
from scoretune.commands.profile import verb as profile
from scoretune.commands.reproduce import verb as reproduce
from scoretune.commands.rpo import verb as rpo
from scoretune.commands.runs import verb as runs
from scoretune.commands.studio import verb as studio
from scoretune.commands.sweep import verb as sweep
from scoretune.core.errors import UserError, one_line

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune diffusion models from rewards and preferences, in continuous time.",
)
app.command()(train.demo)
app.command()(train.train)
app.command()(train.show)
app.command()(rpo.rpo)
app.command()(prefer_text.prefer_text)
app.command()(plan.plan)
app.command()(profile.profile)
app.command()(sweep.sweep)
app.command()(sample.sample)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(gap.gap)
app.command()(runs.runs)
app.command()(families.families)
app.command()(studio.studio)
app.command()(serve_reward.serve_reward)
app.command()(doctor.doctor)
app.command()(reproduce.reproduce)
data_app = typer.Typer(no_args_is_help=True, help="Look at data of preferences, or make pairs.")
data_app.command()(data.check)
data_app.command()(data.resample)
app.add_typer(data_app, name="data")
compress_app = typer.Typer(
    no_args_is_help=True, help="Learn in a measured space: compressed sensing of data."
)
compress_app.command()(compress.check)
app.add_typer(compress_app, name="compress")
feedback_app = typer.Typer(
    no_args_is_help=True, help="Keep samples and what people say of them in a store."
)
feedback_app.command()(feedback.collect)
feedback_app.command("import")(feedback.import_)
feedback_app.command()(feedback.export)
feedback_app.command()(feedback.stats)
feedback_app.command()(feedback.check)
app.add_typer(feedback_app, name="feedback")
control_app = typer.Typer(
    no_args_is_help=True, help="Solve control problems with known answers, and check mechanisms."
)
fee_app = typer.Typer(no_args_is_help=True, help="Transaction-fee mechanisms of a chain.")
fee_app.command()(control.check)
control_app.add_typer(fee_app, name="fee-auction")
control_app.command()(control.staking)
control_app.command()(control.train)
app.add_typer(control_app, name="control")
pretrain_app = typer.Typer(
    no_args_is_help=True, help="Train the shipped models from nothing, or one that writes words."
)
pretrain_app.command()(pretrain.scenes)
pretrain_app.command()(pretrain.words)
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


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2; Ctrl-C is 130."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: idle threads spin for the core
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # else they warn of torchvision
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for logger in ("torchao", "torch.utils._pytree"):  # its kernels for other devices, its types
        logging.getLogger(logger).setLevel(logging.ERROR)
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
    typer.echo(f"scoretune: {one_line(text)}", err=True)
    sys.exit(code)
