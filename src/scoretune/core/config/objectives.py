"""What is minimised, but for preferences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from scoretune.core.config.base import REWARDED, SAMPLES, STEPS, UPDATES, Checked, Strict, only
from scoretune.core.config.model import NEW_NETWORKS

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


ONE_REWARD = r"https?://\S+|[\w.]+(:\w+)?(\([^()]*\))?"
"""How a reward is written that is no sum of others."""


class Critic(Strict):
    """The value network: V = c_skip(t)·reward(x̂0) + c_out(t)·F."""

    learning_rate: float = Field(1e-3, gt=0, le=10, description="of the critic")
    width: int = Field(48, ge=8, le=4096, multiple_of=4, description="channels of F")
    passes: int = Field(2, ge=1, le=1000, description="over a round's states, each round")
    warmup: int = Field(
        1, ge=0, le=UPDATES, description="rounds that only fit the critic, before update 1"
    )
    body: Literal["auto", "small", "backbone"] = Field(
        "auto", description="F: a head on the policy's features (auto: if it has any), or small"
    )
    skip: Literal["cos_sin", "linear", "cos", "none"] = Field(
        "cos_sin", description="c_skip and c_out over time; none: V = F alone"
    )
    inputs: Literal["both", "noisy", "denoised"] = Field("both", description="of a small F")
    gae_lambda: float | None = Field(
        None,
        ge=0,
        le=1,
        description="ratios: what an increment of the value at the end of a path counts at its "
        "beginning; 0: a step's own increment, 1: the outcome; null: 0 in score_as_action, else 1",
    )
    estimate: Literal["pretrained", "policy"] = Field(
        "pretrained",
        validation_alias=AliasChoices("estimate", "jacobian"),
        description="whose x̂0(x) the value reads where its slope is asked for",
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        objective = run.objective
        slopes = isinstance(objective, ScoreAction) and objective.form != "ratio"
        valued = isinstance(objective, ScoreAction) or (
            isinstance(objective, PolicyGradient) and objective.baseline == "critic"
        )
        return {
            **only(self.body != "backbone", Checked("objective.critic.body=small"), "inputs"),
            **only(
                slopes, "score_as_action and objective.form=slope, rate or explicit", "estimate"
            ),
            **only(
                not isinstance(objective, ScoreAction) or objective.form in ("auto", "ratio"),
                "objective.form=ratio",
                "gae_lambda",
            ),
            **only(valued, "objective.baseline=critic", *self.leaves()),
        }


class Objective(Strict):
    """What is minimised; `on_data`: it is learned from data, not from the policy's own samples."""

    on_data: ClassVar[bool] = False


class Matching(Objective):
    """Score matching on data."""

    on_data: ClassVar[bool] = True
    kind: Literal["matching"] = "matching"
    t_min: float = Field(1e-3, ge=1e-9, le=1e4, description="smallest time that is learned from")
    weight: Literal["own", "noise", "data", "v", "velocity", "likelihood", "edm", "min_snr"] = (
        Field(
            "own",
            description="on the error; own: 1 on what the network predicts; edm: as published, "
            "for data of deviation 0.5, though data of one's own are standardised to 1",
        )
    )
    times: Literal["uniform", "importance", "lognormal", "logit_normal"] = Field(
        "uniform",
        description="how times are drawn; lognormal: as published, for data of deviation 0.5",
    )
    loss: Literal["denoising", "sliced", "implicit"] = Field(
        "denoising", description="of score matching; the last two from derivatives of the network"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of prompts that are left empty")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return only(not on_data, Checked(REWARDED), "dropout")


class Consistency(Objective):
    """One call of the network says where a path began (arXiv 2303.01469, 2310.14189)."""

    on_data: ClassVar[bool] = True
    kind: Literal["consistency"] = "consistency"
    rule: Literal["auto", "distillation", "ict", "ct"] = Field(
        "auto", description="auto: distillation of a trained network, ict for a new one"
    )
    points: int = Field(
        0, ge=0, le=100_000, description="of the finest grid; 0: as the rule's paper has it"
    )
    solver: Literal["heun", "euler"] = Field("heun", description="the teacher's")
    decay: float = Field(0.95, ge=0, lt=1, description="distillation: memory of the target network")
    t_min: float = Field(1e-3, ge=1e-9, le=1e4, description="smallest time that is learned from")
    sigma_data: float = Field(
        1.0, ge=1e-4, le=1e4, description="deviation of the states: data are standardised"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        new = run.model.source in NEW_NETWORKS
        distils = self.rule == "distillation" or (self.rule == "auto" and not new)
        taught = "objective.rule=distillation of a trained network"
        return only(distils, taught, "solver", "decay")


def _deviation(value: object) -> object:
    """`shared_scale` was a bool, and is in the files of older runs."""
    return {True: "within", False: "group"}[value] if isinstance(value, bool) else value


class Trusting(Objective):
    """What may bound how far an update goes."""

    trust_region: float | None = Field(
        None, ge=1e-9, le=1e9, description="KL that an update may move, in nats; adapts a penalty"
    )
    early_stop: bool = Field(
        False, description="end an update that has moved 1.5 times the trust region"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return only(self.trust_region is not None, "objective.trust_region", "early_stop")


class PolicyGradient(Trusting):
    """Likelihood ratios and the rewards of whole paths: REINFORCE, DDPO, DPOK, GRPO."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    surrogate: Literal["clipped", "score_function"] = Field(
        "clipped", description="PPO's, or REINFORCE for a single step of the optimiser a round"
    )
    clip: float = Field(0.2, ge=1e-9, le=1e6, description="how far a likelihood ratio may leave 1")
    kl_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="of the KL to the pretrained model: deviations of the reward a nat; with "
        "baseline=critic, which divides by none, the reward's own unit a nat",
    )
    temperature: float = Field(
        1.0, ge=1e-6, le=1e9, description="divides log-ratios, which are sums over dimensions"
    )
    baseline: Literal["group", "running", "critic"] = Field(
        "group",
        description="what a reward is compared with: its prompt's others of the update, its "
        "prompt's last `buffer` ones, or a value",
    )
    combine: Literal["rewards", "advantages"] = Field(
        "rewards", description="several rewards: weighted before they are compared, or after"
    )
    buffer: int = Field(
        32, ge=2, le=SAMPLES, description="running: rewards remembered of each prompt"
    )
    min_count: int = Field(
        16,
        ge=2,
        le=SAMPLES,
        description="running: with fewer than that, compared with the whole batch",
    )
    shared_scale: Annotated[Literal["group", "within", "global"], BeforeValidator(_deviation)] = (
        Field(
            "within",
            description="group: rewards are divided by their group's own deviation, by one of all "
            "about their group's mean, or by one of all about the mean of all",
        )
    )
    critic: Critic = Critic()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        one_reward = re.fullmatch(ONE_REWARD, run.reward) is not None
        clipped, steps = self.surrogate == "clipped", run.sizes.accumulate
        one_step = "a single step of the optimiser a round, sizes.accumulate=0"
        return {
            **only(clipped, "objective.surrogate=clipped", "clip"),
            **only(clipped or not steps, one_step, "surrogate"),
            **super().inert(run, on_data),
            **only(not one_reward, "a sum of rewards, reward=a + 0.5*b", "combine"),
            **only(self.baseline == "running", "objective.baseline=running", "buffer", "min_count"),
            **only(self.baseline == "group", "objective.baseline=group", "shared_scale"),
        }


def by_outcome(objective: Objective) -> bool:
    """Whether it learns from likelihood ratios that are credited by how a path ends."""
    return isinstance(objective, PolicyGradient) and objective.baseline != "critic"


class ScoreAction(Trusting):
    """Continuous-time policy optimisation with a critic."""

    kind: Literal["score_action"] = "score_action"
    form: Literal["auto", "slope", "rate", "explicit", "ratio"] = Field(
        "auto", description="auto: rate if the reward has a gradient, else ratio"
    )
    clip: float = Field(0.2, ge=1e-9, le=1e6, description="how far a likelihood ratio may leave 1")
    kl_weight: float = Field(
        0.003,
        ge=0,
        le=1e6,
        description="of the KL to the pretrained model, in the reward's own unit a nat; the "
        "default is for a log-probability: scale it with the reward",
    )
    exploration: float = Field(
        0.3, ge=1e-6, le=100, description="explicit: deviation of tried noise estimates"
    )
    critic: Critic = Critic()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        ratios = self.form in ("auto", "ratio", "explicit")
        return {
            **only(ratios, "objective.form=ratio or explicit", "clip"),
            **only(self.form == "explicit", "objective.form=explicit", "exploration"),
            **super().inert(run, on_data),
        }


class Direct(Objective):
    """The reward's gradient through the last steps (DRaFT, AlignProp) or the estimate (ReFL)."""

    kind: Literal["direct"] = "direct"
    through: Literal["steps", "estimate"] = Field(
        "steps", description="what the gradient passes through"
    )
    last: int = Field(1, ge=1, le=STEPS, description="steps, from the end, that are learned from")
    random: bool = Field(False, description="a random number of them, up to `last`")
    graph: Literal["auto", "kept", "steps"] = Field(
        "auto",
        description="kept: of all those steps at once; steps: of one at a time, less memory and "
        "slower; auto: kept without a KL weight, hardware.checkpointing or sizes.accumulate",
    )
    kl_weight: float = Field(0.0, ge=0, le=1e6, description="of the KL to the pretrained model")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return only(self.through == "steps", "objective.through=steps", "random", "graph")


class Adjoint(Objective):
    """Adjoint matching: regression onto lean adjoints under the pretrained model."""

    kind: Literal["adjoint"] = "adjoint"
    kl_weight: float = Field(0.003, gt=0, le=1e6, description="of the KL to the pretrained model")


class Guidance(Objective):
    """Guidance distillation: the paths of the pretrained model under classifier-free guidance."""

    kind: Literal["guidance"] = "guidance"
    scale: float = Field(
        3.0, gt=1, le=100, description="of the pretrained model's guidance, which is learned"
    )


class Energy(Objective):
    """D(x)MI: the reward is learned, an energy that tells data from samples."""

    kind: Literal["energy"] = "energy"
    update: Literal["dxmi", "ctrl"] = Field(
        "dxmi", description="value slopes where a step arrives, or where it starts"
    )
    learning_rate: float = Field(1e-4, gt=0, le=10, description="of the energy")
    width: int = Field(48, ge=8, le=4096, multiple_of=4, description="channels of the energy")
    kl_weight: float = Field(0.0, ge=0, le=1e6, description="of the KL to the pretrained model")
