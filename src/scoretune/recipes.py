"""Each method as a function that returns a configuration; one can call another and change it.

Every reward recipe samples with the same kernel (gDDIM, η = 1, 10 Karras steps) unless its method
asks for another, so that what differs between two runs is the method.
"""

from __future__ import annotations

from collections.abc import Callable

from scoretune.core.config import (
    Adjoint,
    Consistency,
    Direct,
    Energy,
    Evaluation,
    Guard,
    Guidance,
    Hardware,
    Matching,
    Model,
    Optimiser,
    PolicyGradient,
    Preference,
    RankedPreference,
    Ranking,
    Run,
    Sampling,
    ScoreAction,
    Sizes,
    StepPreference,
    Strict,
    Window,
)
from scoretune.core.errors import unknown

FAST = Optimiser(learning_rate=3e-3)
PAIRS_OF_MINIATURE = (
    "objective.beta=100",
    "optimiser.learning_rate=3e-3",
    "hardware.device_batch=0",
)
"""What `dpo` wants on the shipped miniature: larger steps than a Stable Diffusion 1.5, whose
settings are the recipe's own."""


def supervised() -> Run:
    """Score matching on data: fine-tunes a pretrained model, or trains a network of one's own.

    model.source=unet, dit or mlp begins from nothing, under the process and with the prediction
    that `model` names.
    """
    return Run(
        recipe="supervised",
        objective=Matching(),
        updates=1000,
        evaluation=Evaluation(every=100),
    )


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
    return _like(reinforce(), "ddpo_sf", sizes=Sizes(prompts=16, group=8, accumulate=0))


def dpok() -> Run:
    """DPOK (arXiv 2305.16381): clipped policy gradient with a value baseline and a path KL.

    Unlike in the paper's code the advantage is not divided by its deviation, so that the KL weight
    is in the reward's own unit: with another reward scale objective.kl_weight as it is scaled.
    """
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
        objective=PolicyGradient(kl_weight=0.003, shared_scale="group"),
        sizes=Sizes(prompts=8, group=16, share=0.5),
        optimiser=FAST,
    )


def flow_grpo() -> Run:
    """Flow-GRPO (arXiv 2505.05470): GRPO on a rectified flow through Euler–Maruyama steps.

    Its noise a√(t/(1−t)) is η = a/√2 at every time; all prompts share one deviation, which
    is that within prompts. Theirs is of all rewards (objective.shared_scale=global): larger where
    prompts differ, so that a KL weight copied from there means another thing here.
    """
    return Run(
        recipe="flow_grpo",
        model=Model(source="scenes-flow"),
        objective=PolicyGradient(kl_weight=0.003),
        sampling=Sampling(kernel="euler_maruyama", noise="flow", eta=0.7),
        sizes=Sizes(prompts=8, group=16),
        optimiser=FAST,
    )


def flow_grpo_fast() -> Run:
    """Flow-GRPO-Fast (arXiv 2505.05470): noise on one step, at a random place.

    The samples of a prompt share the road there, and part at that step.
    """
    return _windowed(flow_grpo(), "flow_grpo_fast", Window(size=1, order="random"))


def flow_cps() -> Run:
    """Flow-GRPO by coefficient-preserving sampling (arXiv 2509.05952).

    Its noise is a share of what is left, however short the step: the sampler does not converge to
    the model's own law as steps are added, so compare it at its own number of steps.
    """
    sampling = Sampling(kernel="renoise", noise="cps", eta=0.7)
    return _like(flow_grpo(), "flow_cps", sampling=sampling)


def dance_grpo() -> Run:
    """DanceGRPO (arXiv 2505.07818): constant noise, one noise to begin with, a share of the steps.

    With a noise-predicting model set sampling.noise=constant: there η itself is constant.
    """
    return _like(
        flow_grpo(),
        "dance_grpo",
        objective=PolicyGradient(shared_scale="group"),
        sampling=Sampling(
            kernel="euler_maruyama", noise="dance", eta=0.3, steps=16, shared_noise=True
        ),
        sizes=Sizes(prompts=8, group=12, share=0.6),
    )


def mix_grpo() -> Run:
    """MixGRPO (arXiv 2507.21802): noise and learning in a window that slides towards the data."""
    return Run(
        recipe="mix_grpo",
        model=Model(source="scenes-flow"),
        objective=PolicyGradient(shared_scale="group", combine="advantages"),
        sampling=Sampling(
            kernel="euler_maruyama",
            noise="flow",
            eta=0.7,
            steps=16,
            window=Window(size=2, every=4),
            shared_noise=True,
        ),
        sizes=Sizes(prompts=8, group=12),
        optimiser=FAST,
    )


def mix_grpo_flash() -> Run:
    """MixGRPO-Flash (arXiv 2507.21802): DPM-Solver++ in fewer steps after the window."""
    faster = Window(size=2, every=4, solver="dpmpp_2m", compress=0.4)
    return _windowed(mix_grpo(), "mix_grpo_flash", faster)


def _windowed(run: Run, recipe: str, window: Window) -> Run:
    sampling = run.sampling.model_copy(update={"window": window, "shared_noise": True})
    return _like(run, recipe, sampling=sampling)


def _like(run: Run, recipe: str, **sections: Strict) -> Run:
    """A recipe like another but for some sections."""
    return run.model_copy(update={"recipe": recipe, **sections})


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
    return _like(draft(), "alignprop", objective=Direct(last=10, random=True))


def refl() -> Run:
    """ReFL (arXiv 2304.05977): the reward's gradient at the estimate of one late step."""
    return _like(draft(), "refl", objective=Direct(through="estimate", last=4))


def adjoint_matching() -> Run:
    """Adjoint matching (arXiv 2409.08861): regression onto lean adjoints, memoryless noise."""
    return Run(
        recipe="adjoint_matching",
        objective=Adjoint(),
        sizes=Sizes(prompts=64, group=1, accumulate=0),
        optimiser=FAST,
    )


def guidance_distillation() -> Run:
    """Guidance distillation (arXiv 2210.03142) by the KL of paths: one call a step for two.

    Follows no reward: what is fine-tuned from there begins where guidance ends.
    """
    return Run(
        recipe="guidance_distillation",
        objective=Guidance(),
        updates=12,
        model=Model(guidance=1.0),
        sampling=Sampling(jitter=True),
        sizes=Sizes(prompts=32, group=1, share=0.8),
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
    """Score as action (arXiv 2502.01819): continuous-time policy optimisation with a critic.

    The paper's gradient, with the value's slope taken at the pretrained model's estimate and its
    trust region; without one learning runs away where the KL weight is small.
    """
    return Run(
        recipe="score_as_action",
        objective=ScoreAction(trust_region=0.1),
        updates=56,
        sampling=Sampling(jitter=True),
        sizes=Sizes(prompts=32, group=1, share=0.8),
        optimiser=FAST,
    )


def dpo() -> Run:
    """Diffusion-DPO (arXiv 2311.12908): people's choices between two pictures, without a reward.

    objective.preset=NAME takes another loss of the same pairs.
    """
    return Run(
        recipe="dpo",
        objective=Preference(),
        updates=500,
        sizes=Sizes(batch=32),
        optimiser=Optimiser(learning_rate=1e-4),
        hardware=Hardware(device_batch=8),  # of a Stable Diffusion 1.5 on a card of 24 GB
        evaluation=Evaluation(every=100),
        guard=Guard(action="rollback"),
    )


def ipo() -> Run:
    """IPO (arXiv 2310.12036) of pictures: a squared loss, which ends where a margin is reached."""
    return _like(dpo(), "ipo", objective=Preference(preset="ipo"))


def kto() -> Run:
    """Diffusion-KTO (arXiv 2404.04465): likes of single pictures, or both sides of pairs.

    With objective.likes=true the data are single pictures.
    """
    return _like(dpo(), "kto", objective=Preference(preset="kto"))


def simpo() -> Run:
    """SimPO (arXiv 2405.14734) of pictures: a margin in place of the pretrained model.

    Nothing holds the model to what it was but few updates and a low rate.
    """
    return _like(dpo(), "simpo", objective=Preference(preset="simpo"))


def mallows() -> Run:
    """MallowsPO-θ (arXiv 2405.14953): DPO that pushes harder where people agree on a prompt.

    objective.preset=mallows_phi or mallows_ipo takes its other forms.
    """
    settings = Preference(preset="mallows_theta", dispersion="model")
    return _like(dpo(), "mallows", objective=settings)


def rainbow() -> Run:
    """RainbowPO (arXiv 2410.04203) of pictures: a mixed reference, a margin, MallowsPO's scale."""
    return _like(dpo(), "rainbow", objective=Preference(preset="rainbow", dispersion="model"))


def dspo() -> Run:
    """DSPO (Zhu et al., ICLR 2025): match the preferred side, the more the less it is preferred."""
    return _like(dpo(), "dspo", objective=Preference(preset="dspo"))


def online_dpo() -> Run:
    """Online DPO (arXiv 2402.04792): DPO on the policy's own samples, ranked by the reward.

    objective.ranking says how they become pairs, and objective.preset=NAME takes another loss.
    """
    return Run(
        recipe="online_dpo",
        objective=RankedPreference(beta=100.0),
        sizes=Sizes(prompts=32, group=4, epochs=4, minibatch=16),
        optimiser=FAST,
    )


def d3po() -> Run:
    """D3PO (arXiv 2311.13231): the steps of the better of a prompt's samples against the worse's.

    Its β 0.1 and clip 0.1 are of log-ratios that are means over the dimensions: with as many of
    them as D set objective.temperature=D and objective.clip=0.1 for the same.
    """
    return Run(
        recipe="d3po",
        objective=StepPreference(),
        sizes=Sizes(prompts=32, group=4, share=0.5, minibatch=32),
        optimiser=FAST,
    )


def spo() -> Run:
    """SPO (arXiv 2406.04314): at each step the best against the worst of some next states.

    The reward itself scores what the policy expects of a state; the paper trains a network for it.
    """
    return Run(
        recipe="spo",
        objective=StepPreference(beta=1.0, candidates=4, skip=2, ranking=Ranking(temperature=0.2)),
        sizes=Sizes(prompts=32, group=1, minibatch=32),
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
        flow_grpo,
        flow_grpo_fast,
        flow_cps,
        dance_grpo,
        mix_grpo,
        mix_grpo_flash,
        draft,
        alignprop,
        refl,
        adjoint_matching,
        guidance_distillation,
        dxmi,
        score_as_action,
        dpo,
        ipo,
        kto,
        simpo,
        mallows,
        rainbow,
        dspo,
        online_dpo,
        d3po,
        spo,
    )
}


def named(name: str) -> Run:
    """The recipe of that name. Raises UserError with the nearest name."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]()
