"""`scoretune gap`: what noise in the sampler is worth, as a table, a figure and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from scoretune.commands.options import Json, Threads, set_threads
from scoretune.core.errors import UserError


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

    set_threads(threads)
    request = measure.Request(
        model=model,
        reward=reward,
        lora=lora,
        steps=_numbers("steps", steps, int),
        etas=_numbers("eta", eta, float),
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
            result = measure.measure(request, out=out, on_cell=bars.watcher("gap"))
    except KeyboardInterrupt:
        bars.console.print("scoretune: stopped; the same command goes on from there")
        raise
    if json_:
        typer.echo(json.dumps(result))
    else:
        figure.show_table(result)
        typer.echo(f"look at {Path(result['out']) / 'gap.png'}")


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """`5,10,20` as numbers. Raises UserError for anything else."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--{option} {text!r} is no list of numbers: write it as 5,10,20") from None
