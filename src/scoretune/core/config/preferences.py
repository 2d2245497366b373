"""Objectives that learn from preferences: of people, or of rewards about one's own samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from scoretune.core.config.base import STEPS, Strict, only
from scoretune.core.config.objectives import Objective

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


class Preference(Objective):
    """Which of two samples people prefer, or which they like: Diffusion-DPO and its kin."""

    on_data: ClassVar[bool] = True
    kind: Literal["preference"] = "preference"
    preset: str = Field(
        "dpo", description="the loss: dpo, ipo, kto, simpo, mallows_theta, rainbow, dspo …"
    )
    beta: float | None = Field(
        None,
        ge=1e-9,
        le=1e9,
        description="how closely the model is held to the pretrained one; null: 5000 with "
        "beta_unit=mean (100 without the whole reference, 0.01 for dspo), or as much in nats",
    )
    beta_unit: Literal["mean", "nats"] = Field(
        "mean",
        description="of beta; mean: Diffusion-DPO's B, on the mean squared error of an element, at "
        "all times alike; nats: on the bound of the log-likelihood, a sum over elements and an "
        "integral over the log-SNR",
    )
    times: Literal["uniform", "importance", "lognormal", "logit_normal"] = Field(
        "uniform",
        description="how times are drawn; importance: uniformly in the log-SNR; the last two are "
        "emphases, for beta_unit=mean",
    )
    t_min: float = Field(1e-3, ge=1e-9, le=1e4, description="smallest time that is learned from")
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the pretrained model's part in the reference, of which the rest sets every "
        "pair apart by the margin; null: the preset's own",
    )
    margin: float | None = Field(
        None,
        ge=0,
        le=1e9,
        description="by how much the preferred side should be ahead, as a reward (beta times a "
        "difference); odpo: times the difference of scores; null: the preset's own",
    )
    sft_weight: float | None = Field(
        None, ge=0, le=1e9, description="of the preferred side's own error; null: the preset's own"
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="share of labels that are taken to be wrong; null: the preset's own",
    )
    dispersion: Literal["none", "votes", "model"] = Field(
        "none",
        description="what tells disputed prompts from agreed ones, for the mallows presets and "
        "rainbow: the raters' votes, or how unsure the pretrained model is of the pictures",
    )
    ties: Literal["keep", "drop"] = Field("keep", description="pairs of which neither is preferred")
    raters: Literal["soft", "separate"] = Field(
        "soft", description="several of one pair: their share is its label, or a pair each"
    )
    likes: bool = Field(
        False, description="kto: data are single samples, liked or not; else both sides of pairs"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of prompts that are left empty")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return only(not self.likes, "objective.likes=false", "ties", "raters")


class Ranking(Strict):
    """How the policy's own samples become pairs with labels."""

    pairing: Literal["extremes", "all"] = Field(
        "extremes", description="of a prompt's samples: the best and the worst, or every two"
    )
    label: Literal["hard", "soft", "votes"] = Field(
        "hard",
        description="hard: the higher reward is preferred; soft: with probability "
        "σ((r − r')/temperature), Bradley–Terry; votes: the share of raters who vote so",
    )
    temperature: float = Field(
        1.0, ge=1e-9, le=1e9, description="the difference of rewards that a rater barely sees"
    )
    raters: int = Field(3, ge=1, le=1000, description="votes: how many raters there are")
    ties: Literal["keep", "drop"] = Field(
        "drop", description="pairs of equal rewards or of as many votes"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        votes, objective = self.label == "votes", run.objective
        of_candidates = _of_candidates(objective)
        weighed = (
            isinstance(objective, RankedPreference) and objective.dispersion == "samples"
        ) or (isinstance(objective, StepPreference) and of_candidates and objective.threshold > 0)
        whole = "the samples of a prompt: online_dpo and d3po"
        return {
            **only(votes, "objective.ranking.label=votes", "raters"),
            **only(
                self.label != "hard" or weighed,
                "objective.ranking.label=soft or votes, or objective.dispersion=samples",
                "temperature",
            ),
            **only(not of_candidates, whole, "pairing"),
            **only(run.sizes.group != 2 or of_candidates, "sizes.group above 2", "pairing"),
        }


def _of_candidates(objective: Objective) -> bool:
    """Whether preferences are of candidates of single steps, not of whole paths."""
    return isinstance(objective, StepPreference) and objective.candidates > 0


class RankedPreference(Preference):
    """Preferences about the policy's own samples, ranked by the reward: online DPO."""

    on_data: ClassVar[bool] = False
    kind: Literal["ranked_preference"] = "ranked_preference"  # type: ignore[assignment]
    reference: Literal["pretrained", "acting"] = Field(
        "pretrained", description="acting: the policy that drew the samples, the last round's"
    )
    dispersion: Literal["none", "votes", "samples"] = Field(  # type: ignore[assignment]
        "none",
        description="what tells disputed prompts from agreed ones, for the mallows presets and "
        "rainbow: the raters' votes, or how far the rewards of a prompt's samples lie apart",
    )
    ranking: Ranking = Ranking()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        data = "recipes on pairs of data; objective.ranking says it here"
        return {
            **super().inert(run, on_data),
            **dict.fromkeys(("ties", "raters", "likes"), data),
        }


class StepPreference(Objective):
    """Preferences about single steps of a sampler: D3PO and SPO."""

    kind: Literal["step_preference"] = "step_preference"
    preset: str = Field("dpo", description="the loss, any of pairs")
    beta: float = Field(0.1, ge=1e-9, le=1e9, description="multiplies a step's log-ratio, in nats")
    clip: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="how far a step's likelihood ratio to the reference may leave 1 before it is "
        "no longer pushed; null: any distance",
    )
    temperature: float = Field(
        1.0,
        ge=1e-6,
        le=1e9,
        description="divides log-ratios, which are sums over dimensions: as many as there are make "
        "the means of the published code",
    )
    reference: Literal["pretrained", "acting"] = Field(
        "pretrained", description="acting: the policy that drew the samples, the last round's"
    )
    candidates: int = Field(
        0,
        ge=0,
        le=64,
        description="0: the steps of a prompt's samples, ranked at their ends; else so many next "
        "states of each step, ranked by the reward of what the policy expects of them",
    )
    threshold: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="candidates: smallest gap of their softmax, at ranking.temperature, to learn "
        "from",
    )
    skip: int = Field(
        0, ge=0, le=STEPS, description="candidates: steps from noise that have only one"
    )
    ranking: Ranking = Ranking()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        several = "objective.candidates above 1"
        return only(self.candidates > 0, several, "threshold", "skip")
