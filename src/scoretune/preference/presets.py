"""The methods, each one line of data over one general loss (`preference.losses`).

With q(y) = (lp(y) − α·rp(y))/|y|^η and u = β·score(q), the general loss of a preferred pair is

    z = c·[u_w − u_l − (1−α)^[mixing]·(β·home_advantage + target_margin + margin)
           + length_penalty·(|y_w| − |y_l|) − β·chosen_floor·max(0, rp_w − lp_w)]              (R1)
    L = weight·[f(z) + Σ terms of u_w and u_l − sft_weight·lp_w/|y_w|^η]                       (R2)

(arXiv 2410.04203; the switches after its Table 1.) The margin has two units, and a field for each:
`home_advantage` is a difference of log-likelihoods and is multiplied by β (the γ/β of SimPO);
`target_margin` is a difference of rewards and is not (the γ of SimPO).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

Link = Literal[
    "logistic", "square", "hinge", "squared_hinge", "cauchy", "sigmoid", "exo", "discopop",
    "mallows_phi",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha", "log_odds"]


@dataclass(frozen=True)
class Term:
    """weight·f(sign·u) of one side alone, beside the term of the gap."""

    side: Literal["chosen", "rejected"]
    link: Link
    sign: int
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The switches of the general loss; the defaults are DPO.

    `scaling` says what the argument `scale` of the loss is: c(x) from a dispersion, c of the batch
    (`adaptive_scale`), or the φ(x) of the link. `reference_update` is for trainers: "soft" moves
    the reference to share·policy + (1−share)·reference every `reference_every` updates, "stage"
    takes the policy of the stage before; `resampled` says that the pairs are to be drawn by
    rejection sampling.
    """

    source: str
    kind: Literal["pair", "single"] = "pair"
    link: Link | None = "logistic"
    link_parameter: float = 0.0  # ε of exo, τ of discopop
    terms: tuple[Term, ...] = ()
    length_normalised: bool = False
    reference_weight: float = 1.0
    mixing: bool = False
    home_advantage: float = 0.0
    target_margin: float = 0.0
    length_penalty: float = 0.0
    offset: bool = False
    scaling: Literal["dispersion", "batch", "phi"] | None = None
    weighted: bool = False
    divergence: Divergence = "reverse_kl"
    divergence_parameter: float = 0.5
    chosen_floor: float = 0.0
    label_smoothing: float = 0.0
    debiased: bool = False
    beta_outside: bool = False
    sft_weight: float = 0.0
    sft_per_token: bool = False
    reference_update: Literal["soft", "stage"] | None = None
    reference_share: float = 0.6
    reference_every: int = 512
    resampled: bool = False
    baseline: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.reference_weight <= 1:
            raise ValueError(f"reference_weight must lie in [0, 1], got {self.reference_weight}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")
        if self.link == "exo" and not 0 < self.link_parameter < 1:
            raise ValueError(f"exo's link_parameter must lie in (0, 1), got {self.link_parameter}")
        if self.link == "discopop" and not self.link_parameter > 0:
            raise ValueError(f"discopop's link_parameter τ must be > 0, got {self.link_parameter}")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads the reference's log-likelihoods."""
        return self.reference_weight != 0

    @property
    def needs_lengths(self) -> bool:
        """Whether the loss reads the numbers of tokens (or elements) of the sides."""
        per_token = self.sft_weight != 0 and self.sft_per_token
        return self.length_normalised or self.length_penalty != 0 or per_token

    @property
    def needs_scale(self) -> bool:
        """Whether `scale` must be given."""
        return self.scaling is not None


DPO = Preset(source="DPO, arXiv 2305.18290 eq. 7")
SIMPO = Preset(
    source="SimPO, arXiv 2405.14734 eq. 6",
    length_normalised=True,
    reference_weight=0.0,
    target_margin=0.5,
)


def _of(base: Preset, source: str, **changes: object) -> Preset:
    return replace(base, source=source, **changes)  # type: ignore[arg-type]


PRESETS: dict[str, Preset] = {
    "dpo": DPO,
    "ln_dpo": _of(DPO, "DPO per token, arXiv 2410.04203", length_normalised=True),
    "ipo": _of(DPO, "IPO, arXiv 2310.12036 eq. 17, times β²", link="square"),
    "ln_ipo": _of(DPO, "IPO per token, times β²", link="square", length_normalised=True),
    "slic": _of(
        DPO, "SLiC-HF, arXiv 2305.10425", link="hinge", reference_weight=0.0, sft_weight=0.1
    ),
    "rso": _of(DPO, "RSO, arXiv 2309.06657, hinge-norm", link="hinge", resampled=True),
    "squared_hinge": _of(DPO, "arXiv 2410.04203, its link", link="squared_hinge"),
    "cauchy": _of(DPO, "arXiv 2410.04203, its link", link="cauchy"),
    "fdpo": _of(DPO, "f-DPO with Jensen–Shannon, arXiv 2309.16240", divergence="js"),
    "fdpo_forward_kl": _of(DPO, "f-DPO, arXiv 2309.16240", divergence="forward_kl"),
    "fdpo_alpha": _of(DPO, "f-DPO, arXiv 2309.16240", divergence="alpha"),
    "odpo": _of(DPO, "ODPO, arXiv 2402.10571", offset=True),
    "rdpo": _of(DPO, "R-DPO, arXiv 2403.19159", length_penalty=0.05),
    "cpo": _of(DPO, "CPO, arXiv 2401.08417 eq. 3", reference_weight=0.0, sft_weight=1.0),
    "orpo": _of(
        DPO,
        "ORPO, arXiv 2403.07691 eq. 7, β its λ",
        length_normalised=True,
        reference_weight=0.0,
        divergence="log_odds",
        beta_outside=True,
        sft_weight=1.0,
    ),
    "simpo": SIMPO,
    "alphapo": _of(
        SIMPO, "AlphaPO, arXiv 2501.03884", divergence="alpha", divergence_parameter=0.75
    ),
    "rpo_alpha": _of(DPO, "arXiv 2404.19733", sft_weight=1.0, sft_per_token=True),
    "dpop": _of(DPO, "DPO-Positive, arXiv 2402.13228", chosen_floor=50.0),
    "trdpo": _of(DPO, "TR-DPO, arXiv 2404.09656, soft update", reference_update="soft"),
    "sdpo": _of(DPO, "sDPO, arXiv 2403.19270", reference_update="stage"),
    "cdpo": _of(DPO, "conservative DPO (Mitchell 2023)", label_smoothing=0.1),
    "robust": _of(DPO, "robust DPO, arXiv 2403.00409", label_smoothing=0.1, debiased=True),
    "exo": _of(DPO, "EXO, arXiv 2402.00856 eq. 16", link="exo", link_parameter=1e-3),
    "discopop": _of(DPO, "DiscoPOP, arXiv 2406.08414", link="discopop", link_parameter=0.05),
    "beta_dpo": _of(DPO, "β-DPO, arXiv 2407.08639", scaling="batch"),
    "wpo": _of(DPO, "WPO, arXiv 2406.11827 eq. 2", weighted=True),
    "nca": _of(
        DPO,
        "NCA, arXiv 2402.05369",
        link=None,
        terms=(
            Term("chosen", "logistic", 1),
            Term("chosen", "logistic", -1, 0.5),
            Term("rejected", "logistic", -1, 0.5),
        ),
    ),
    "bco": _of(
        DPO,
        "BCO of pairs without its moving shift, arXiv 2404.04656",
        link=None,
        terms=(Term("chosen", "logistic", 1), Term("rejected", "logistic", -1)),
    ),
    "sppo": _of(
        DPO,
        "SPPO, arXiv 2405.00675 eq. 4.7, times β²",
        link=None,
        terms=(Term("chosen", "square", 1), Term("rejected", "square", -1)),
    ),
    "apo_zero": _of(
        DPO,
        "APO-zero, arXiv 2408.06266 eq. 7",
        link=None,
        terms=(Term("chosen", "sigmoid", 1), Term("rejected", "sigmoid", -1)),
    ),
    "apo_down": _of(
        DPO,
        "APO-down, arXiv 2408.06266 eq. 8",
        link="sigmoid",
        terms=(Term("chosen", "sigmoid", -1),),
    ),
    "kto": _of(DPO, "KTO, arXiv 2402.01306 eq. 7", kind="single", link="sigmoid", baseline=True),
    "apo_zero_single": _of(
        DPO, "APO-zero of single samples, arXiv 2408.06266", kind="single", link="sigmoid"
    ),
    "mallows_theta": _of(DPO, "MallowsPO-θ, arXiv 2405.14953", scaling="dispersion"),
    "mallows_phi": _of(DPO, "MallowsPO-φ, arXiv 2405.14953", link="mallows_phi", scaling="phi"),
    "mallows_ipo": _of(
        DPO, "IPO by dispersion, arXiv 2405.14953", link="square", scaling="dispersion"
    ),
    "rainbow": _of(
        DPO,
        "RainbowPO, arXiv 2410.04203",
        length_normalised=True,
        reference_weight=0.25,
        mixing=True,
        home_advantage=0.1,
        scaling="dispersion",
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of this name. Raises ValueError, with the nearest name, if there is none."""
    try:
        return PRESETS[name]
    except KeyError:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else f": one of {', '.join(PRESETS)}"
        raise ValueError(f"no preset is called {name!r}{hint}") from None
