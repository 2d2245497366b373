"""Published experiments in miniature, from one command: `scoretune reproduce NAME`.

One file a part; each part is cells of work and a page about them (`reproduce.base`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """MODULE of this folder, or MODULE:OBJECT in it, with `cells` and `present`.

    `wants_model` ones are given a model folder by the user, of which `model_hint` says what it is;
    `wants_data` ones also learn from what is in a folder of the user's, if there is one, and
    `needs_data` ones from nothing else.
    """

    place: str
    title: str
    wants_model: bool = False
    wants_data: bool = False
    needs_data: bool = False
    model_hint: str = (
        "make it, in about an hour, with scoretune pretrain scenes FOLDER --caption-noise 0 "
        "--steps 9500"
    )


EXPERIMENTS: dict[str, dict[str, Part]] = {
    "compressed": {
        "recovery": Part(
            "compressed_recovery", "Sparse recovery: how many measurements, and what they cost"
        ),
        "exact-scores": Part(
            "compressed_sampling", "Sampling measurements with an exact score, and decoding"
        ),
        "pictures": Part(
            "compressed_pictures", "Pictures recovered from their measurements", wants_data=True
        ),
        "learned": Part(
            "compressed_learned",
            "Learned diffusion of measurements, of the data and of other latents",
            wants_data=True,
        ),
        "stress": Part("compressed_stress", "Stress tests by generated factors", wants_data=True),
        "reward": Part(
            "compressed_reward",
            "A reward on decoded pictures, through the decoder",
            wants_data=True,
        ),
    },
    "contractive": {
        "theory": Part("contractive_theory", "What contraction buys and costs, exactly"),
        "point": Part("contractive_point", "A wrong score, OU and contractive OU"),
        "mixture": Part("contractive_mixture", "Two modes and an error of the score"),
        "swiss-roll": Part("contractive_swiss", "A Swiss roll under six processes"),
        "recycling": Part("contractive_recycling", "One network under many processes"),
        "images": Part("contractive_images", "Pictures under three processes", wants_data=True),
    },
    "continuous-rl": {
        "control": Part("continuous_rl", "Policy optimisation for continuous RL"),
    },
    "fee-auction": {
        "incentives": Part("fee_incentives", "Fee mechanisms under proof of stake, searched"),
    },
    "guard": {
        "hackable": Part("guard_hackable", "A reward that is gamed, and the guard that sees it"),
        "honest": Part("guard_honest", "The guard on an honest reward"),
    },
    "mallows": {
        "exact": Part("mallows_exact", "MallowsPO where nothing is random"),
        "bandit": Part("mallows_bandit", "MallowsPO from votes on a bandit"),
        "dispersion": Part("mallows_dispersion", "Dispersion from entropy, and learning with it"),
    },
    "preference-patches": {
        "divergence": Part(
            "preference_patches", "Where Diffusion-DPO gains and where it runs away"
        ),
        "rewards": Part("patch_rewards", "Rewards followed by values, by slopes, under a KL"),
    },
    "preference-toy": {
        "tilt": Part("preference_toy", "Losses of preferences where the best law is known"),
    },
    "preference-scenes": {
        "scenes": Part(
            "preference_scenes", "The miniature Stable Diffusion learns from people's choices"
        ),
        "expected": Part(
            "preference_scenes:THREE", "Diffusion-DPO and online DPO beside DDPO, on the miniature"
        ),
        "tuning": Part("preference_scenes:TUNING", "What the arms of `scenes` were tuned by"),
    },
    "rainbow": {
        "language": Part("rainbow_language", "RainbowPO's claims in a language of ten tokens"),
        "switches": Part("rainbow_switches", "Every switch of RainbowPO, alone and left out"),
        "stories": Part(
            "rainbow_stories",
            "RainbowPO on people's judgements, with a small real language model",
            wants_model=True,
            wants_data=True,
            model_hint="the folder of llama2.c's stories260K.bin and tok512.bin",
        ),
    },
    "reward-gap": {
        "closed-forms": Part("gap_theory", "The reward gap, exactly"),
        "toy": Part("gap_toy", "The reward gap while a Gaussian is fine-tuned"),
        "scenes": Part(
            "gap_training:SCENES", "The miniature Stable Diffusion under DDPO, and its gap"
        ),
        "flow": Part(
            "gap_training:FLOW", "The rectified-flow miniature under MixGRPO, and its gap"
        ),
        "window": Part("gap_window", "A window of two steps against the whole path"),
    },
    "reward-model": {
        "votes": Part("reward_votes", "Reward models from votes, and their scale"),
        "active": Part("reward_active", "Votes that active choice of pairs saves"),
        "people": Part(
            "reward_people",
            "What people said of real models' pictures",
            wants_data=True,
            needs_data=True,
        ),
    },
    "rpo": {
        "patches": Part("rpo_patches", "Edits as preferences, in the smallest world of pictures"),
        "scenes": Part("rpo_scenes", "Edits as preferences, on the miniature Stable Diffusion"),
    },
    "score-as-action": {
        "units": Part("units", "What a KL weight and a clip range mean"),
        "toy": Part("score_as_action_toy", "Score as action where the optimum is known"),
        "trust-region": Part("trust_region", "Where learning runs away, and what holds it"),
        "critic": Part("critic_ablation", "Value networks on the miniature Stable Diffusion"),
        "few-step": Part("few_step", "Few-step samplers of digits"),
        "scenes": Part(
            "prompt_following:SHIPPED", "The miniature Stable Diffusion learns to follow prompts"
        ),
        "jpeg": Part("scenes_jpeg", "The miniature Stable Diffusion and a reward without gradient"),
        "samplers": Part("samplers", "Guidance, and solvers that training never saw"),
        "guidance": Part("guidance", "Reward and guidance, alone and one after the other"),
        "hard": Part("prompt_following:HARD", "A base with clean captions", wants_model=True),
    },
    "staking": {
        "trading": Part("staking_trade", "Trading under proof of stake", wants_data=True),
        "bellman": Part("staking_bellman", "Trading's Bellman equations on ever finer lattices"),
        "learning": Part("staking_learning", "Trading under proof of stake, learned"),
    },
    "tutorial": {
        "processes": Part(
            "tutorial_processes", "Forward processes, and the family of their reverses"
        ),
        "samplers": Part("tutorial_samplers", "Samplers, exactly"),
        "matching": Part("tutorial_matching", "Score matching"),
        "consistency": Part("tutorial_consistency", "Consistency models"),
        "convergence": Part("tutorial_convergence", "Bounds, and the errors they bound"),
    },
}
