"""Each method as a function that returns a configuration; one can call another and change it."""

from __future__ import annotations

from collections.abc import Callable

from scoretune.config import Matching, Optimiser, PolicyGradient, Run, ScoreAction, Sizes
from scoretune.errors import unknown


def supervised() -> Run:
    """Fine-tuning on data by denoising score matching."""
    return Run(recipe="supervised", objective=Matching(), updates=1000)


def ddpo() -> Run:
    """DDPO (arXiv 2305.13301): clipped policy gradient on the reward of whole paths."""
    return Run(
        recipe="ddpo",
        objective=PolicyGradient(),
        sizes=Sizes(prompts=16, group=8, share=0.5),
        optimiser=Optimiser(learning_rate=3e-3),
    )


def score_as_action() -> Run:
    """Score as action (arXiv 2502.01819): continuous-time policy optimisation with a critic."""
    return Run(
        recipe="score_as_action",
        objective=ScoreAction(),
        updates=56,
        sizes=Sizes(prompts=32, group=1, share=0.8),
        optimiser=Optimiser(learning_rate=3e-3),
    )


def demo() -> Run:
    """What `scoretune demo` runs: score as action on the shipped model, sized for four minutes."""
    return score_as_action()


RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe for recipe in (supervised, ddpo, score_as_action)
}


def named(name: str) -> Run:
    """The recipe of that name. Raises UserError with the nearest name."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
