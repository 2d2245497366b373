"""One loss for every method that learns from preferences, and its margin.

The switches are a `Preset`; formulas R1 and R2 stand in `preference.presets`. Everything is [B],
one number a pair; log-likelihoods are sums over a sample, in nats. Raises ValueError, in one line
that names what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.preference import links
from scoretune.preference.divergences import side_score
from scoretune.preference.presets import PRESETS, Link, Preset, preset_named
from scoretune.shapes import check_rank, check_shape

Lengths = tuple[Tensor, Tensor]


def pairwise_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    preset: str | Preset = "dpo",
    beta: float = 0.1,
    lengths: Lengths | None = None,
    margin: Tensor | None = None,
    scale: Tensor | None = None,
    label: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The loss of each pair, [B], to be minimised.

    `label` in [0, 1] is the probability that `chosen` is preferred (None: it is): the loss is
    label·L(+) + (1 − label)·L(−), L(−) being that of the two sides exchanged. `margin`, in units of
    reward, is by how much the first side should stand above the second, so that it changes its sign
    when they are exchanged (ODPO: a·(score − score)); the margin of a preset is asked of whichever
    side is preferred. Exchanging the sides, `margin` → −margin and label → 1 − label, changes
    nothing.

    `scale` is c(x), or the φ(x) of the Mallows-φ link; `weight` multiplies the loss of a pair;
    `lengths` are numbers of tokens or elements. What a preset does not read is ignored, but for
    `margin`, `scale` and `weight`, which any preset of pairs takes.
    """
    preset = _resolved(preset, "pair")
    pair = _Pair(chosen, rejected, reference_chosen, reference_rejected, lengths, margin)
    _check(pair, preset, beta, scale)
    if preset.weighted and weight is None:
        raise ValueError(f"{_named(preset)} needs weight, the product of both on_policy_weight's")
    check_shape(chosen.shape, label=label, weight=weight)
    if label is not None:
        _check_share("label", label)
    loss = _of_preferred(pair, preset, beta, scale)
    share = _smoothed(label, preset)
    if share is not None:
        loss = share * loss + (1 - share) * _of_preferred(pair.exchanged(), preset, beta, scale)
    return loss if weight is None else weight * loss


def implicit_margin(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    preset: str | Preset = "dpo",
    beta: float = 0.1,
    lengths: Lengths | None = None,
    margin: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """z of R1, [B], as `pairwise_loss` takes it to the link: positive where the policy agrees."""
    preset = _resolved(preset, "pair")
    pair = _Pair(chosen, rejected, reference_chosen, reference_rejected, lengths, margin)
    _check(pair, preset, beta, scale)
    return _margin(pair, preset, beta, scale)


def single_loss(
    value: Tensor,
    reference: Tensor | None,
    liked: Tensor,
    *,
    preset: str | Preset = "kto",
    beta: float = 0.1,
    baseline: Tensor | None = None,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """The loss of single samples with a like each, [B].

    f(β(lp − rp − baseline)) where liked, f of its negative where disliked, mixed by `liked` in
    [0, 1] and weighted by (liked, disliked). The baseline, a number or [B], in nats, is the KL of
    the policy to its reference as KTO estimates it (`kl_baseline`); no gradient flows through it.
    """
    preset = _resolved(preset, "single")
    _check_beta(beta)
    if preset.needs_reference and reference is None:
        raise ValueError(f"{_named(preset)} compares with a reference: give its log-likelihoods")
    if preset.baseline and baseline is None:
        raise ValueError(f"{_named(preset)} needs a baseline, the KL to the reference in nats")
    check_rank(1, 1, value=value)
    check_shape(value.shape, reference=reference, liked=liked)
    _check_share("liked", liked)
    reward = beta * side_score(
        value if reference is None else value - preset.reference_weight * reference,
        preset.divergence,
        preset.divergence_parameter,
    )
    if preset.baseline and baseline is not None:
        reward = reward - beta * baseline.detach()
    if preset.link is None:
        raise ValueError(f"{_named(preset)} has no link")
    up = _linked(preset.link, reward, preset, None)
    down = _linked(preset.link, -reward, preset, None)
    return weights[0] * liked * up + weights[1] * (1 - liked) * down


def kl_baseline(log_ratios: Tensor) -> Tensor:
    """max(0, mean of lp − rp), without gradient: KTO's estimate of the KL (arXiv 2402.01306).

    `log_ratios` [n] are of samples that do not belong to their prompts (KTO), or the batch's own.
    """
    return log_ratios.detach().mean().clamp(min=0)


# ---------------------------------------------------------------------------- one preferred side


@dataclass(frozen=True)
class _Pair:
    """A pair whose first side is the preferred one."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    lengths: Lengths | None
    margin: Tensor | None

    def exchanged(self) -> _Pair:
        return _Pair(
            self.rejected,
            self.chosen,
            self.reference_rejected,
            self.reference_chosen,
            None if self.lengths is None else self.lengths[::-1],
            None if self.margin is None else -self.margin,
        )


def _rewards(pair: _Pair, preset: Preset, beta: float) -> tuple[Tensor, Tensor]:
    """u = β·score(q) of both sides."""
    sides = [
        (pair.chosen, pair.reference_chosen, pair.lengths and pair.lengths[0]),
        (pair.rejected, pair.reference_rejected, pair.lengths and pair.lengths[1]),
    ]
    scores = []
    for value, reference, length in sides:
        if preset.needs_reference and reference is not None:
            value = value - preset.reference_weight * reference
        if preset.length_normalised and length is not None:
            value = value / length
        scores.append(side_score(value, preset.divergence, preset.divergence_parameter))
    factor = 1.0 if preset.beta_outside else beta
    return factor * scores[0], factor * scores[1]


def _margin(
    pair: _Pair,
    preset: Preset,
    beta: float,
    scale: Tensor | None,
    rewards: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """z of R1, with R-DPO's difference of lengths and DPOP's floor."""
    up, down = _rewards(pair, preset, beta) if rewards is None else rewards
    z = up - down
    asked: Tensor | float = beta * preset.home_advantage + preset.target_margin
    if pair.margin is not None:
        asked = asked + pair.margin
    z = z - ((1 - preset.reference_weight) * asked if preset.mixing else asked)
    if preset.length_penalty and pair.lengths is not None:
        z = z + preset.length_penalty * (pair.lengths[0] - pair.lengths[1])
    if preset.chosen_floor and pair.reference_chosen is not None:
        fallen = torch.relu(pair.reference_chosen - pair.chosen)
        z = z - beta * preset.chosen_floor * fallen
    return z if scale is None or preset.scaling == "phi" else scale * z


def _of_preferred(pair: _Pair, preset: Preset, beta: float, scale: Tensor | None) -> Tensor:
    """L(+): the link of the margin, the terms of single sides and the SFT term."""
    rewards = _rewards(pair, preset, beta)
    loss = torch.zeros_like(pair.chosen)
    if preset.link is not None:
        z = _margin(pair, preset, beta, scale, rewards)
        loss = loss + _linked(preset.link, z, preset, scale)
    for term in preset.terms:
        value = rewards[0] if term.side == "chosen" else rewards[1]
        if scale is not None:
            value = scale * value
        loss = loss + term.weight * _linked(term.link, term.sign * value, preset, None)
    if preset.beta_outside:
        loss = beta * loss
    if preset.sft_weight:
        tokens = preset.length_normalised or preset.sft_per_token
        likely = pair.chosen / pair.lengths[0] if tokens and pair.lengths else pair.chosen
        loss = loss - preset.sft_weight * likely
    return loss


def _linked(link: Link, z: Tensor, preset: Preset, scale: Tensor | None) -> Tensor:
    if link in links.PLAIN:
        return links.PLAIN[link](z)
    if link in links.WITH_NUMBER:
        return links.WITH_NUMBER[link](z, preset.link_parameter)
    assert scale is not None
    return links.mallows_phi(z, scale)


def _smoothed(label: Tensor | None, preset: Preset) -> Tensor | float | None:
    """The label as a share of L(+). Label noise ε makes it ε + (1 − 2ε)·label (conservative DPO);
    the inverse of that map, (label − ε)/(1 − 2ε), makes the loss unbiased under flips (robust)."""
    noise = preset.label_smoothing
    if label is None and not noise:
        return None
    share: Tensor | float = 1.0 if label is None else label
    if not noise:
        return share
    return (share - noise) / (1 - 2 * noise) if preset.debiased else noise + (1 - 2 * noise) * share


# ---------------------------------------------------------------------------- what is refused


def _resolved(preset: str | Preset, kind: str) -> Preset:
    resolved = preset_named(preset) if isinstance(preset, str) else preset
    if resolved.kind != kind:
        use = "single_loss" if resolved.kind == "single" else "pairwise_loss"
        raise ValueError(f"{_named(resolved)} is for {resolved.kind} samples: use {use}")
    return resolved


def _named(preset: Preset) -> str:
    return next(
        (f"preset {name!r}" for name, own in PRESETS.items() if own == preset), "the preset"
    )


def _check(pair: _Pair, preset: Preset, beta: float, scale: Tensor | None) -> None:
    _check_beta(beta)
    missing = {
        "reference_chosen and reference_rejected, the reference's log-likelihoods": (
            preset.needs_reference
            and (pair.reference_chosen is None or pair.reference_rejected is None)
        ),
        "lengths, the numbers of tokens or elements": preset.needs_lengths and pair.lengths is None,
        "scale, the dispersion φ of each prompt": preset.scaling == "phi" and scale is None,
        "scale, c of each prompt from its dispersion": (
            preset.scaling == "dispersion" and scale is None
        ),
        "scale, c of the batch": preset.scaling == "batch" and scale is None,
        "margin, the offset of each pair": preset.offset and pair.margin is None,
    }
    for what, is_missing in missing.items():
        if is_missing:
            raise ValueError(f"{_named(preset)} needs {what}")
    check_rank(1, 1, chosen=pair.chosen)
    check_shape(
        pair.chosen.shape,
        rejected=pair.rejected,
        reference_chosen=pair.reference_chosen,
        reference_rejected=pair.reference_rejected,
        margin=pair.margin,
        scale=scale,
    )
    if pair.lengths is not None:
        first, second = pair.lengths
        check_shape(pair.chosen.shape, lengths_chosen=first, lengths_rejected=second)
        if preset.needs_lengths and not bool(((first > 0) & (second > 0)).all()):
            raise ValueError("lengths must be > 0: a side without tokens has no mean")


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")


def _check_share(name: str, share: Tensor) -> None:
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"{name} must lie in [0, 1], got {share.min():.3g} to {share.max():.3g}")
