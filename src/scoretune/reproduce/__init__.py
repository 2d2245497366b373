"""Published experiments in miniature, from one command: `scoretune reproduce NAME`.

One file a part; each part is cells of work and a page about them (`reproduce.base`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A module of this folder; `wants_model` ones are given a model folder by the user."""

    module: str
    title: str
    wants_model: bool = False


EXPERIMENTS: dict[str, dict[str, Part]] = {
    "continuous-rl": {
        "control": Part("continuous_rl", "Policy optimisation for continuous RL"),
    },
    "score-as-action": {
        "units": Part("units", "What a KL weight and a clip range mean"),
        "toy": Part("score_as_action_toy", "Score as action where the optimum is known"),
        "critic": Part("critic_ablation", "Value networks on the miniature Stable Diffusion"),
        "few-step": Part("few_step", "Few-step samplers of digits"),
        "scenes": Part("scenes", "The miniature Stable Diffusion learns to follow prompts"),
        "jpeg": Part("scenes_jpeg", "The miniature Stable Diffusion and a reward without gradient"),
        "samplers": Part("samplers", "Guidance, and solvers that training never saw"),
        "hard": Part("scenes_hard", "A base with clean captions", wants_model=True),
    },
}
