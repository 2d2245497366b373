"""`scoretune pretrain`: the shipped models from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scoretune.commands.options import Seed, Threads, set_threads


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

    set_threads(threads)
    bars = Bars()
    with bars.progress:
        recipe = lessons.Recipe(seed=seed, caption_noise=caption_noise, denoiser_steps=steps)
        train = pretrain.pretrain_flow if flow else pretrain.pretrain
        model = train(folder, recipe, bars.show)
    typer.echo(f"the model is in {model}")
