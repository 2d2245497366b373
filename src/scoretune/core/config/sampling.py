"""How the policy acts while it trains, and how much of it is sampled and learned an update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from scoretune.core.config.base import (
    ON_POLICY,
    REWARDED,
    SAMPLES,
    STEPS,
    UPDATES,
    Checked,
    OdeSolver,
    Strict,
    only,
)
from scoretune.core.config.objectives import Direct, PolicyGradient, ScoreAction, by_outcome
from scoretune.core.config.preferences import RankedPreference

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


class Window(Strict):
    """Which steps of a path are stochastic and learned from; an ODE solver takes the others."""

    size: int = Field(
        0, ge=0, le=STEPS, description="steps; 0: every step is stochastic, there is no window"
    )
    order: Literal["progressive", "random", "frozen"] = Field(
        "progressive", description="moves from noise to data and begins again; jumps; stays"
    )
    every: int = Field(1, ge=1, le=UPDATES, description="updates between two moves")
    stride: int = Field(1, ge=1, le=STEPS, description="steps a move")
    decay: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="progressive: how fast stays grow shorter towards the data; 0: not",
    )
    decay_from: int = Field(13, ge=0, le=STEPS, description="the place from which on they do")
    solver: OdeSolver = Field("ddim", description="of the other steps")
    compress: float = Field(
        1.0, gt=0, le=1, description="share of the steps after the window that is taken"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        others = [name for name in self.leaves() if name != "size"]
        ratios = "likelihood ratios credited by outcome: mix_grpo, flow_grpo, ddpo"
        progressive = "sampling.window.order=progressive"
        return {
            **only(self.decay > 0, "sampling.window.decay above 0", "decay_from"),
            **only(self.order != "frozen", f"{progressive} or random", "every"),
            **only(self.order == "progressive", progressive, "stride", "decay", "decay_from"),
            **only(self.size > 0, "sampling.window.size above 0", *others),
            **only(by_outcome(run.objective), ratios, *others),
            **only(by_outcome(run.objective), Checked(ratios), "size"),
        }


class Sampling(Strict):
    """How the policy acts while it trains."""

    kernel: Literal["gddim", "renoise", "euler_maruyama", "exponential"] = Field(
        "gddim", description="how a step is taken"
    )
    noise: Literal["constant", "ramp", "flow", "dance", "cps"] = Field(
        "constant", description="how noisy at which time; `eta` is its level"
    )
    eta: float = Field(
        1.0,
        ge=0,
        le=100,
        description="stochasticity: 1 is the reverse SDE, 0 the ODE (draft, alignprop, refl); with "
        "noise=flow, dance or cps the level of that paper: η = eta/√2, η = eta/g(t), a share of "
        "the std",
    )
    eta_end: float | None = Field(None, ge=0, le=100, description="ramp: stochasticity at the data")
    steps: int = Field(10, ge=2, le=STEPS, description="of a path")
    grid: Literal["auto", "karras", "uniform", "shifted"] = Field(
        "auto", description="auto: karras; uniform where the noise has no finite ratio to data"
    )
    shift: float = Field(3.0, ge=1e-3, le=1000, description="of grid shifted")
    window: Window = Window()
    shared_noise: bool = Field(False, description="the samples of a prompt begin with one noise")
    jitter: bool = Field(False, description="draw the inner times anew for every path")
    integral_end: float = Field(
        1e-3,
        gt=0,
        lt=1,
        description="flows: share of the horizon where girsanov_kl ends; it grows like ln 1/t",
    )
    solver: OdeSolver | None = Field(
        None,
        description="null: the kernel's noise; else an ODE solver, for forms rate and explicit",
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        objective, acts = run.objective, not run.objective.on_data
        forms = ("auto", "rate", "explicit")
        rates = isinstance(objective, ScoreAction) and objective.form in forms
        whose = Checked("score_as_action with objective.form=auto, rate or explicit")
        noise = "the kernel's noise, sampling.solver=null"
        return {
            **only(self.noise == "ramp", "sampling.noise=ramp", "eta_end"),
            **only(self.grid == "shifted", "sampling.grid=shifted", "shift"),
            **only(run.sizes.group > 1, "sizes.group above 1", "shared_noise"),
            **only(self.solver is None or not rates, noise, "kernel", "noise", "eta", "eta_end"),
            **only(rates or self.jitter, f"{whose}, or sampling.jitter", "integral_end"),
            **only(rates, whose, "solver"),
            **only(
                acts,
                ON_POLICY,
                *("shared_noise", "jitter", "solver", "window.size", "integral_end"),
            ),
            **only(not on_data, REWARDED, *self.leaves()),
        }


class Sizes(Strict):
    """How much is sampled and learned an update."""

    prompts: int = Field(16, ge=1, le=SAMPLES, description="an update")
    group: int = Field(8, ge=1, le=SAMPLES, description="samples of each prompt")
    batch: int = Field(
        0, ge=0, le=SAMPLES, description="matching: examples an update; 0: prompts × group"
    )
    minibatch: int = Field(
        64, ge=1, le=SAMPLES, description="steps, or paths, learned from at once"
    )
    share: float = Field(1.0, gt=0, le=1, description="of each path's steps that are learned from")
    accumulate: int = Field(
        1,
        ge=0,
        le=SAMPLES,
        description="minibatches an optimiser step; 0 makes one step of an epoch",
    )
    epochs: int = Field(
        1, ge=1, le=1000, description="passes over a round's states, each in a new order"
    )

    @model_validator(mode="after")
    def bounded(self) -> Sizes:
        """Refuse more samples than an update can hold."""
        if self.prompts * self.group > SAMPLES:
            raise PydanticCustomError(
                "samples",
                "prompts × group is {count} samples an update: at most {most}",
                {"count": self.prompts * self.group, "most": SAMPLES},
            )
        return self

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        acts, objective = not run.objective.on_data, run.objective
        scores = isinstance(objective, PolicyGradient) and objective.surrogate == "score_function"
        any_step = "recipes that learn from any step of a path (here objective.last says which)"
        several = (
            "objective.surrogate=clipped, since a score function is right for a single step of the "
            "optimiser a round, sizes.accumulate=0"
        )
        return {
            **only(acts or not self.batch, "sizes.batch=0", "prompts", "group"),
            **only(not acts, Checked("recipes on data"), "batch"),
            **only(not isinstance(objective, Direct), any_step, "share"),
            **only(
                not isinstance(objective, RankedPreference),
                "recipes that learn from the steps of paths (d3po, spo)",
                "share",
            ),
            **only(run.sampling.window.size != 1, "more than one noisy step a path", "share"),
            **only(acts, ON_POLICY, "minibatch", "share", "accumulate", "epochs"),
            **only(not scores or not self.accumulate, several, "accumulate"),
            **only(not scores or self.epochs == 1, several, "epochs"),
        }
