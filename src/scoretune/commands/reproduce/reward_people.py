"""Scores and a reward from what people said of real models' pictures, whose pixels are not needed:
fits to the tables of `published_ratings`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations, permutations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.published_ratings import (
    DSG,
    METRICS,
    MODELS,
    PAIRS,
    RANKINGS,
    TIFA,
    Rated,
    read_dsg,
    read_rankings,
    read_tifa,
)
from scoretune.core.errors import UserError
from scoretune.preference import (
    TieModel,
    expected_calibration_error,
    fit_scale,
    fit_scores,
    fit_votes,
    outcome_log_probs,
)
from scoretune.preference.listwise import tied_plackett_luce
from scoretune.training.reward_model.measured import agreement_of_raters

TIES: tuple[TieModel, ...] = ("bradley_terry", "rao_kupper", "davidson")
RESAMPLES, HELD_OUT, RIDGE = 50, 0.3, 1.0
FLAT = 1e-6  # a ridge that only fixes the mean


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """The models' scores, the reward of metrics on every seed's split, and the long rankings.
    Raises UserError where a table is missing."""
    for name in (DSG, TIFA, RANKINGS):
        if data is None or not (Path(data) / name).exists():
            raise UserError(f"this part needs {name}: give its folder by --data")
    resamples = 3 if quick else RESAMPLES
    return [
        Cell("models", models, {"data": data, "resamples": resamples}),
        Cell("rankings", rankings, {"data": data}),
        *(Cell(f"reward-{seed}", reward, {"data": data, "seed": seed}) for seed in range(seeds)),
    ]


# ------------------------------------------------------------------------------ the models


def models(data: str, resamples: int) -> Numbers:
    """Scores of the five models by either table and every law, with errors over prompts, and checks
    of the fits."""
    numbers: Numbers = {}
    for name, rated in (("DSG", read_dsg(Path(data))), ("TIFA", read_tifa(Path(data))[0])):
        prompts = list(dict.fromkeys(rated.prompts))
        generator = torch.Generator().manual_seed(0)
        drawn = [
            rated.of([prompts[i] for i in _resampled(len(prompts), generator)])
            for _ in range(resamples)
        ]
        counts = rated.counts().sum(0)
        numbers[name] = {
            "people": len(rated.prompts),
            "ties": float(counts[:, 1].sum() / counts.sum()),
            "library": _from_library(counts),
            "efron": float((_ranked(rated) - _ranked(rated, exact=True)).abs().max()),
            "laws": {
                law: _with_errors(score, rated, drawn)
                for law, score in (LAWS | {"plackett_luce": _ranked}).items()
            },
            "loss": {law: _loss(counts, law) for law in TIES[1:]},
        }
    return numbers


def _resampled(count: int, generator: torch.Generator) -> list[int]:
    places: list[int] = torch.randint(count, (count,), generator=generator).tolist()
    return places


def _scores(law: TieModel) -> Callable[[Rated], Tensor]:
    def scores(rated: Rated) -> Tensor:
        fit = fit_scores(PAIRS, rated.counts().sum(0), len(MODELS), model=law, ridge=FLAT)
        return fit.estimates

    return scores


LAWS = {law: _scores(law) for law in TIES}


def _with_errors(score: Callable[[Rated], Tensor], rated: Rated, drawn: list[Rated]) -> Numbers:
    """Scores, and their standard errors over resampled prompts."""
    errors = torch.stack([score(again) for again in drawn]).std(0)
    return {"scores": score(rated).tolist(), "errors": errors.tolist()}


def _loss(counts: Tensor, law: TieModel) -> float:
    """Of the fit, in nats a vote."""
    fit = fit_scores(PAIRS, counts, len(MODELS), model=law, ridge=FLAT)
    return fit.loss / float(counts.sum())


def _from_library(counts: Tensor) -> float:
    """The largest difference of Bradley–Terry's scores from those of scikit-learn's logistic
    regression without penalty, a tie being half a vote for either side."""
    from sklearn.linear_model import LogisticRegression

    design = torch.zeros(len(PAIRS), len(MODELS), dtype=torch.float64)
    design[torch.arange(len(PAIRS)), PAIRS[:, 0]] = 1
    design[torch.arange(len(PAIRS)), PAIRS[:, 1]] = -1
    weights = torch.cat([counts[:, side] + counts[:, 1] / 2 for side in (0, 2)])
    regression = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    regression.fit(
        torch.cat([design, design])[:, 1:].numpy(),
        [1] * len(PAIRS) + [0] * len(PAIRS),
        sample_weight=weights.numpy(),
    )
    theirs = torch.cat([torch.zeros(1), torch.from_numpy(regression.coef_[0])]).double()
    fit = fit_scores(PAIRS, counts, len(MODELS), model="bradley_terry", ridge=FLAT)
    return float((theirs - theirs.mean() - fit.estimates).abs().max())


def _ranked(rated: Rated, *, exact: bool = False) -> Tensor:
    """Plackett–Luce's scores of the models from whole rankings, ties by Efron's mean or, `exact`,
    by the mean over all orders of what is tied."""
    patterns, many = (-rated.ratings).unique(dim=0, return_counts=True)
    orders = [_orders(ranks) for ranks in patterns.tolist()] if exact else []

    def loss(scores: Tensor) -> Tensor:
        if not exact:
            each = tied_plackett_luce(scores.expand(len(patterns), -1), patterns)
            efron: Tensor = each @ many.to(each)
            return efron
        places = torch.tensor([order for some in orders for order in some])
        owner = torch.tensor([i for i, some in enumerate(orders) for _ in some])
        placed = scores[places]
        rest = placed.flip(-1).logcumsumexp(-1).flip(-1)
        chance = (placed - rest).sum(-1).exp()
        mean = torch.zeros(len(orders), dtype=chance.dtype).index_add(0, owner, chance)
        sizes = torch.tensor([len(some) for some in orders])
        total: Tensor = -(mean / sizes).log() @ many.to(mean)
        return total

    fitted = _minimum(loss, len(MODELS))
    return fitted - fitted.mean()


def _orders(ranks: list[int]) -> list[list[int]]:
    """All orders, best first, that agree with ranks."""
    groups = [[i for i, r in enumerate(ranks) if r == rank] for rank in sorted(set(ranks))]
    return [
        [place for part in parts for place in part]
        for parts in product(*(permutations(group) for group in groups))
    ]


def _minimum(loss: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Where a smooth convex loss of `size` numbers is least."""
    point = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([point], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(point) + FLAT * point.square().sum()
        value.backward()
        return value

    optimiser.step(closure)
    return point.detach()


# ------------------------------------------------------------------------------ a reward


def reward(data: str, seed: int) -> Numbers:
    """A weighted sum of the metrics, fitted to TIFA's votes on some prompts and measured on the
    others', by the same people's votes and by DSG's."""
    rated, metrics = read_tifa(Path(data))
    others = read_dsg(Path(data))
    prompts = list(metrics)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = round(HELD_OUT * len(prompts))
    held_out, inside = ([prompts[i] for i in part] for part in (order[:cut], order[cut:]))
    table = torch.cat(list(metrics.values())).double()
    scaled = {p: (m.double() - table.mean(0)) / table.std(0) for p, m in metrics.items()}

    def design(rated: Rated) -> Tensor:
        gaps = [scaled[p][PAIRS[:, 0]] - scaled[p][PAIRS[:, 1]] for p in rated.prompts]
        return torch.stack(gaps)

    train, same_raters = rated.of(inside), rated.of(held_out)
    strangers = others.of(held_out)
    votes = train.counts().flatten(0, 1)
    fit = fit_votes(design(train).flatten(0, 1), votes, model="davidson", ridge=RIDGE)
    numbers: Numbers = {"weights": dict(zip(METRICS, fit.estimates.tolist(), strict=True))}
    for name, people in (("TIFA", same_raters), ("DSG", strangers)):
        features, counts = design(people).flatten(0, 1), people.counts().flatten(0, 1)
        gaps, decided = features @ fit.estimates, counts[:, 1] == 0
        numbers[name] = {
            "the fitted reward": _agreement(gaps, counts),
            **{metric: _agreement(features[:, i], counts) for i, metric in enumerate(METRICS)},
        }
        law = outcome_log_probs(gaps, "davidson", fit.tie or 1.0)[:, [0, 2]].softmax(1)[:, 0]
        numbers[f"{name} factor"] = float(fit_scale(gaps, counts).estimates)
        numbers[f"{name} calibration"] = expected_calibration_error(
            law[decided], counts[decided, 0]
        )
    numbers["people"] = _people(strangers)
    return numbers


def _agreement(gaps: Tensor, counts: Tensor) -> float:
    """The share of the votes for a side that are for the side with the larger score; equal scores
    are half right."""
    right = torch.where(gaps > 0, counts[:, 0], counts[:, 2])
    right = torch.where(gaps == 0, (counts[:, 0] + counts[:, 2]) / 2, right)
    return float(right.sum() / counts[:, [0, 2]].sum())


def _people(rated: Rated) -> float | None:
    """How often two people who both prefer one of two pictures prefer the same."""
    counts: dict[str, Tensor] = defaultdict(lambda: torch.zeros(len(PAIRS), 3).double())
    for prompt, votes in zip(rated.prompts, rated.counts(), strict=True):
        counts[prompt] += votes
    return agreement_of_raters(torch.cat(list(counts.values()))[:, [0, 2]])


# ------------------------------------------------------------------------------ rankings


def rankings(data: str) -> Numbers:
    """ImageReward's rankings: how many are tied, and whether the place in the file, from 0 for the
    first to 1 for the last, says anything of the rank: its weight under Plackett–Luce."""
    rows = read_rankings(Path(data))
    longest = max(map(len, rows))
    ranks = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[i < len(row) for i in range(longest)] for row in rows])
    last = mask.sum(1, keepdim=True) - 1
    place = torch.arange(longest).double()[None] / last

    def loss(weight: Tensor) -> Tensor:
        return tied_plackett_luce(weight * place, ranks, mask).sum()

    weight = _minimum(loss, 1)
    curvature = torch.autograd.functional.hessian(loss, weight)
    pairs = [(a, b) for row in rows for a, b in combinations(row, 2)]
    return {
        "prompts": len(rows),
        "pictures": sum(map(len, rows)),
        "ties": sum(a == b for a, b in pairs) / len(pairs),
        "place": float(weight),
        "place_error": float(curvature.squeeze()) ** -0.5,
        "per place": float(loss(weight)) / float(last.sum()),
        "at random": float(loss(torch.zeros(1).double())) / float(last.sum()),
    }


# ------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """The models' scores by every law, the reward of metrics, and the rankings."""
    both, ranked = results["models"], results["rankings"]
    splits = [numbers for name, numbers in results.items() if name.startswith("reward-")]
    page.text(ABOUT.format(resamples=RESAMPLES))
    page.table(["table, law", *MODELS], _score_rows(both))
    page.text(CHECKS.format(**{f"{k}_{t}": v for t in both for k, v in _checks(both[t]).items()}))
    page.text(REWARD.format(held_out=HELD_OUT, ridge=RIDGE, splits=len(splits)))
    shares = {
        name: {table: interval([split[table][name] for split in splits]) for table in both}
        for name in splits[0]["TIFA"]
    }
    page.table(
        ["", *(f"% of {table}'s votes" for table in ("TIFA", "DSG"))],
        [
            [name, *(shown(share[table], 1, scale=100) for table in ("TIFA", "DSG"))]
            for name, share in shares.items()
        ],
    )
    scales = {
        name: interval([split[name] for split in splits])
        for name in ("TIFA factor", "DSG factor", "TIFA calibration", "DSG calibration", "people")
    }
    page.text(MORE.format(**{k.replace(" ", "_"): shown(v) for k, v in scales.items()}))
    page.text(RANKED.format(**{k.replace(" ", "_"): v for k, v in ranked.items()}))
    page.figure("people", _figure(shares), "Held-out agreement of a fitted reward and of metrics")
    return {"models": both, "agreement": shares, "rankings": ranked, **scales}


def _score_rows(both: Numbers) -> list[list[str]]:
    return [
        [
            f"{table}, {law.replace('_', '–')}",
            *(
                f"{score:+.2f} ± {error:.2f}"
                for score, error in zip(fit["scores"], fit["errors"], strict=True)
            ),
        ]
        for table, numbers in both.items()
        for law, fit in numbers["laws"].items()
    ]


def _checks(numbers: Numbers) -> Numbers:
    return {
        "people": numbers["people"],
        "ties": numbers["ties"],
        "library": numbers["library"],
        "efron": numbers["efron"],
        "rk": numbers["loss"]["rao_kupper"],
        "davidson": numbers["loss"]["davidson"],
    }


def _figure(shares: dict[str, Numbers]) -> Any:
    figure, axes = subplots(size=(7, 3.6), grid="x")
    names = list(shares)[::-1]
    for colour, table, shift in zip(COLOURS, ("TIFA", "DSG"), (0.12, -0.12), strict=False):
        spreads = [shares[name][table] for name in names]
        places = [place + shift for place in range(len(names))]
        axes.hlines(places, [s[1] for s in spreads], [s[2] for s in spreads], color=colour)
        axes.plot([s[0] for s in spreads], places, "o", color=colour, label=f"{table}'s raters")
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("held-out votes that it agrees with")
    axes.legend(frameon=False, fontsize=8)
    return figure


ABOUT = """
Five models' pictures of 160 prompts were rated from 1 to 5 by people, once for DSG and once for
TIFA. Of two pictures that one person rated, the higher is preferred and equal ratings are a tie;
and a person's five ratings are a ranking with ties. Scores have mean 0; errors are standard
deviations over {resamples} resamplings of the prompts.
"""
CHECKS = """
DSG has {people_DSG} people's ratings of all five, TIFA {people_TIFA}; {ties_DSG:.1%} and
{ties_TIFA:.1%} of the pairs are ties. Bradley–Terry's scores differ from those of scikit-learn's
logistic regression by at most {library_DSG:.1e} and {library_TIFA:.1e}. Of the laws with ties
Rao–Kupper's loss is {rk_DSG:.4f} and {rk_TIFA:.4f} nats a vote, Davidson's {davidson_DSG:.4f} and
{davidson_TIFA:.4f}. Efron's mean takes tied things as alike; where a tie says nothing (the exact
mean over all orders of what is tied), Plackett–Luce's scores differ by up to {efron_DSG:.2f} and
{efron_TIFA:.2f}: with so many ties it matters which is meant.
"""
REWARD = """
A reward from votes on features: the weighted sum of TIFA's ten metrics, fitted to its raters'
votes (Davidson, ridge {ridge:g}); {held_out:.0%} of the prompts are held out, {splits} splits
with 95 % intervals over them. DSG's raters judged the same pictures and are never learned from.
Shares are of votes for a side.
"""
MORE = """
On the scale of held-out votes the reward's factor is {TIFA_factor} for TIFA's raters and
{DSG_factor} for DSG's, its expected calibration error {TIFA_calibration} and {DSG_calibration}.
Two of DSG's raters who both prefer a side agree in {people} of the cases.
"""
RANKED = """
ImageReward's test set: {prompts} prompts, {pictures} pictures, {ties:.1%} of the pairs tied.
Without the pictures nothing but the place in the file can be fitted: from the first to the last a
picture's score changes by {place:+.2f} ± {place_error:.2f}, which takes the loss from
{at_random:.4f} to {per_place:.4f} nats a place.
"""
