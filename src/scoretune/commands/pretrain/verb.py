"""`scoretune pretrain`: the shipped models from nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from scoretune.commands.options import Seed, Threads, set_threads
from scoretune.core.errors import UserError


def scenes(
    folder: Annotated[Path, typer.Argument(help="Where to work; holds the model at the end.")],
    threads: Threads = 1,
    seed: Seed = 0,
    caption_noise: Annotated[
        float, typer.Option(min=0, max=1, help="Share of captions that are wrong, at the end.")
    ] = 0.1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the denoiser (14000) or the editor (4500).")
    ] = None,
    flow: Annotated[
        bool, typer.Option("--flow", help="The rectified-flow miniature (Stable Diffusion 3).")
    ] = False,
    edit: Annotated[
        bool, typer.Option("--edit", help="The editor of scenes (InstructPix2Pix).")
    ] = False,
) -> None:
    """Train the miniature Stable Diffusion, its reader and its judge; resumes where it stopped."""
    from scoretune.commands.display import Bars
    from scoretune.commands.pretrain import editing, lessons, pretrain

    if flow and edit:
        raise UserError("--flow and --edit are two models: train one, then the other")
    set_threads(threads)
    bars = Bars()
    with bars.progress:
        if edit:
            lesson = editing.EditRecipe(seed=seed)
            lesson = lesson if steps is None else replace(lesson, steps=steps)
            model = editing.pretrain_editor(folder, lesson, bars.show)
        else:
            recipe = lessons.Recipe(seed=seed, caption_noise=caption_noise)
            recipe = recipe if steps is None else replace(recipe, denoiser_steps=steps)
            train = pretrain.pretrain_flow if flow else pretrain.pretrain
            model = train(folder, recipe, bars.show)
    typer.echo(f"the model is in {model}")


def words(
    folder: Annotated[Path, typer.Argument(help="Where to work; holds the model at the end.")],
    threads: Threads = 1,
    seed: Seed = 0,
    caption_noise: Annotated[
        float, typer.Option(min=0, max=1, help="Share of captions that are misspelt, at the end.")
    ] = 0.3,
    steps: Annotated[int | None, typer.Option(min=1, help="Of the denoiser (5000).")] = None,
) -> None:
    """Train a miniature that writes words, and often misspells them; resumes where it stopped."""
    from scoretune.commands.display import Bars
    from scoretune.commands.pretrain import spelling

    set_threads(threads)
    recipe = replace(spelling.RECIPE, seed=seed, caption_noise=caption_noise)
    recipe = recipe if steps is None else replace(recipe, denoiser_steps=steps)
    bars = Bars()
    with bars.progress:
        model = spelling.pretrain_words(folder, recipe, bars.show)
    typer.echo(f"the model is in {model}, the prompts beside it")
