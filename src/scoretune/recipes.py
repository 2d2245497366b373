"""Each method as a function that returns a configuration; one can call another and change it.

Every reward recipe samples with the same kernel (gDDIM, η = 1, 10 Karras steps) unless its method
asks for another, so that what differs between two runs is the method.
"""

from __future__ import annotations

from collections.abc import Callable

from scoretune.config import (
    Adjoint,
    Consistency,
    Direct,
    Energy,
    Matching,
    Optimiser,
    PolicyGradient,
    Run,
    Sampling,
    ScoreAction,
    Sizes,
)
from scoretune.errors import unknown

FAST = Optimiser(learning_rate=3e-3)


def supervised() -> Run:
    """Score matching on data: fine-tunes a pretrained model, or trains a network of one's own.

    model.source=unet, dit or mlp begins from nothing, under the process and with the prediction
    that `model` names.
    """
    return Run(recipe="supervised", objective=Matching(), updates=1000)


def consistency() -> Run:
    """Consistency models (arXiv 2303.01469, 2310.14189): samples from one call of the network.

    Distils the network of a run on data, named by model.source; or trains a new one.
    """
    return Run(
        recipe="consistency",
        objective=Consistency(),
        updates=2000,
        optimiser=Optimiser(learning_rate=3e-4),
    )


def reinforce() -> Run:
    """REINFORCE (Williams 1992) on whole paths: one step of the optimiser a round, no ratios."""
    return Run(
        recipe="reinforce",
        objective=PolicyGradient(surrogate="score_function"),
        sizes=Sizes(prompts=128, group=1, accumulate=0),
        optimiser=FAST,
    )


def ddpo() -> Run:
    """DDPO-IS (arXiv 2305.13301): clipped policy gradient on the reward of whole paths."""
    return Run(
        recipe="ddpo",
        objective=PolicyGradient(),
        sizes=Sizes(prompts=16, group=8, share=0.5),
        optimiser=FAST,
    )


def ddpo_sf() -> Run:
    """DDPO-SF (arXiv 2305.13301): REINFORCE with rewards compared within their prompt."""
    return reinforce().model_copy(
        update={"recipe": "ddpo_sf", "sizes": Sizes(prompts=16, group=8, accumulate=0)}
    )


def dpok() -> Run:
    """DPOK (arXiv 2305.16381): clipped policy gradient with a value baseline and a path KL."""
    return Run(
        recipe="dpok",
        objective=PolicyGradient(kl_weight=0.01, baseline="critic"),
        sizes=Sizes(prompts=64, group=1, share=0.5),
        optimiser=FAST,
    )


def grpo() -> Run:
    """GRPO (arXiv 2402.03300, as Flow-GRPO 2505.05470): each group's own deviation, a path KL."""
    return Run(
        recipe="grpo",
        objective=PolicyGradient(kl_weight=0.003, shared_scale=False),
        sizes=Sizes(prompts=8, group=16, share=0.5),
        optimiser=FAST,
    )


def draft() -> Run:
    """DRaFT-K (arXiv 2309.17400): the reward's gradient through the last K = `last` steps."""
    return Run(
        recipe="draft",
        objective=Direct(last=3),
        updates=271,
        sizes=Sizes(prompts=16, group=1, accumulate=0),
        optimiser=Optimiser(learning_rate=1e-3),
    )


def alignprop() -> Run:
    """AlignProp (arXiv 2310.03739): the gradient through a random number of the steps."""
    return draft().model_copy(
        update={"recipe": "alignprop", "objective": Direct(last=10, random=True)}
    )


def refl() -> Run:
    """ReFL (arXiv 2304.05977): the reward's gradient at the estimate of one late step."""
    return draft().model_copy(
        update={"recipe": "refl", "objective": Direct(through="estimate", last=4)}
    )


def adjoint_matching() -> Run:
    """Adjoint matching (arXiv 2409.08861): regression onto lean adjoints, memoryless noise."""
    return Run(
        recipe="adjoint_matching",
        objective=Adjoint(),
        sizes=Sizes(prompts=64, group=1, accumulate=0),
        optimiser=FAST,
    )


def dxmi() -> Run:
    """DxMI (arXiv 2407.00626): a few-step sampler follows an energy learned beside it."""
    return Run(
        recipe="dxmi",
        objective=Energy(),
        sizes=Sizes(prompts=64, group=1),
        optimiser=Optimiser(learning_rate=1e-4),
    )


def score_as_action() -> Run:
    """Score as action (arXiv 2502.01819): continuous-time policy optimisation with a critic."""
    return Run(
        recipe="score_as_action",
        objective=ScoreAction(),
        updates=56,
        sampling=Sampling(jitter=True),
        sizes=Sizes(prompts=32, group=1, share=0.8),
        optimiser=FAST,
    )


def demo() -> Run:
    """What `scoretune demo` runs: score as action on the shipped model, sized for five minutes."""
    return score_as_action()


RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe
    for recipe in (
        supervised,
        consistency,
        reinforce,
        ddpo,
        ddpo_sf,
        dpok,
        grpo,
        draft,
        alignprop,
        refl,
        adjoint_matching,
        dxmi,
        score_as_action,
    )
}


def named(name: str) -> Run:
    """The recipe of that name. Raises UserError with the nearest name."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
