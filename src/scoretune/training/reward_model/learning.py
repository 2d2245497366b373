"""How the heads learn: each member leaves out one fold of the prompts, and stops where its votes
are explained best. On these left-out votes the ensemble's scale and its ties are fitted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core import fsdp
from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.preference import TieModel, VoteFit, fit_votes, vote_loss
from scoretune.preference.listwise import tied_plackett_luce
from scoretune.training.reward_model.examples import Votes
from scoretune.training.reward_model.settings import RewardSettings

LOOKS, BETWEEN = 40, 5  # at the fold that is left out, and the fewest updates between two
PATIENCE = 6  # looks without a better one, after which a member learns no more
CLIP = 1.0  # of the gradient
RIDGE = 1e-3  # of the fitted scale: where every left-out vote agrees, it stays finite


@dataclass
class Member:
    """A head while it learns: the best of it so far, and how well that explains left-out votes."""

    head: nn.Module
    log_tie: nn.Parameter
    optimiser: torch.optim.Optimizer
    best: dict[str, Tensor]
    best_loss: float = math.inf
    stale: int = 0
    """Looks since the best."""

    @classmethod
    def fresh(cls, head: nn.Module, settings: RewardSettings) -> Member:
        log_tie = nn.Parameter(torch.zeros(()))
        groups = [
            {"params": list(head.parameters()), "weight_decay": settings.weight_decay},
            {"params": [log_tie], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate)
        return cls(head, log_tie, optimiser, copy.deepcopy(head.state_dict()))

    def state(self) -> dict[str, Any]:
        return {
            "head": self.head.state_dict(),
            "log_tie": self.log_tie.detach(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "stale": self.stale,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.log_tie.data.copy_(state["log_tie"])
        fsdp.restore(self.optimiser, state["optimiser"])
        self.best = state["best"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
        self.stale = state["stale"]


@dataclass(frozen=True)
class Lessons:
    """The votes, the fold of every pair (−1: held out), and how ties come about."""

    votes: Votes
    folds: Tensor
    ties: TieModel

    def training(self, fold: int) -> Tensor:
        """The pairs that a member learns from one by one: of people, and not of its fold."""
        return ((self.folds >= 0) & (self.folds != fold)).nonzero()[:, 0]

    def left_out(self, fold: int) -> Tensor:
        return (self.folds == fold).nonzero()[:, 0]

    def loss(self, member: Member, places: Tensor) -> Tensor:
        """The mean of −ln P over the votes on these pairs."""
        counts = self.votes.counts[places]
        gaps = self.votes.gaps(member.head, places)
        loss = vote_loss(gaps, counts.to(gaps), self.ties, member.log_tie.exp())
        return loss.sum() / counts.sum()


def learn(
    member: Member,
    number: int,
    lessons: Lessons,
    settings: RewardSettings,
    *,
    done: int,
    after: Callable[[int, dict[str, float]], None],
) -> None:
    """The updates of a member from `done` on; everything random follows from the seed, the member
    and the update. `after` is told how many updates are done, and the losses. It ends early where
    the left-out votes have not been explained better for PATIENCE looks."""
    training, left_out = lessons.training(number), lessons.left_out(number)
    people = training[training < lessons.votes.ranked]
    rankings = _rankings(lessons, training)
    if not len(training):
        raise UserError("all votes are of one part of the prompts: give votes on more of them")
    every = max(BETWEEN, settings.updates // LOOKS)
    if not done:
        _look(member, lessons, left_out)  # a head that begins with an opinion may keep it
    for update in range(done, settings.updates):
        if member.stale >= PATIENCE:
            return
        generator = torch.Generator().manual_seed(_seed(settings.seed, number, update))
        rate = 0.5 * (1 + math.cos(math.pi * update / settings.updates))
        for group in member.optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate
        parts = []
        if len(people):
            drawn = torch.randperm(len(people), generator=generator)[: settings.batch]
            parts.append(lessons.loss(member, people[drawn]))
        if rankings:
            place = int(torch.randint(len(rankings), (), generator=generator))
            parts.append(
                _ranking_loss(
                    member,
                    lessons.votes,
                    rankings[place:] + rankings[:place],
                    most=max(1, settings.batch // 8),
                )
            )
        loss = torch.stack(parts).mean()
        member.optimiser.zero_grad()
        loss.backward()
        fsdp.clip([*member.head.parameters(), member.log_tie], CLIP)
        member.optimiser.step()
        numbers = {"loss": float(loss.detach())}
        if (update + 1) % every == 0 or update + 1 == settings.updates:
            numbers["left out"] = _look(member, lessons, left_out)
        after(update + 1, numbers)


def _rankings(lessons: Lessons, training: Tensor) -> list[int]:
    """The rankings all of whose pairs a member may learn from."""
    inside = {
        int(place)
        for pair in lessons.votes.pairs[training[training >= lessons.votes.ranked]]
        for place in pair
    }
    return [i for i, (places, _, _) in enumerate(lessons.votes.rankings) if inside & {*places}]


def _ranking_loss(member: Member, votes: Votes, which: list[int], *, most: int) -> Tensor:
    """The mean of −ln P a place, by Plackett–Luce, over some whole rankings."""
    total, places_count = [], 0
    for number in which[:most]:
        places, prompt, ranks = votes.rankings[number]
        prompts = votes.prompts[prompt].expand(len(places), *votes.prompts.shape[1:])
        scores = member.head(votes.seen(votes.pictures[list(places)]), prompts)
        total.append(tied_plackett_luce(scores[None], torch.tensor([ranks]))[0])
        places_count += len(places) - 1
    return torch.stack(total).sum() / places_count


@torch.no_grad()
def _look(member: Member, lessons: Lessons, left_out: Tensor) -> float:
    """How well the member explains the votes that it does not learn from; the best is kept.

    A fold without votes keeps the last.
    """
    member.head.eval()
    parts = [left_out[span] for span in spans(len(left_out), 256)]
    sums = [float(lessons.loss(member, part) * lessons.votes.counts[part].sum()) for part in parts]
    loss = sum(sums) / float(lessons.votes.counts[left_out].sum()) if parts else -math.inf
    member.head.train()
    member.stale += 1
    if loss <= member.best_loss:
        member.stale = 0
        member.best_loss = loss if parts else math.inf
        member.best = copy.deepcopy(member.head.state_dict())
    return loss if parts else math.nan


@torch.no_grad()
def gaps_of(head: nn.Module, votes: Votes, places: Tensor) -> Tensor:
    """A frozen head's gaps on some pairs, [k]."""
    parts = [votes.gaps(head, places[span]) for span in spans(len(places), 256)]
    return torch.cat(parts) if parts else torch.zeros(0)


def calibrated(heads: nn.ModuleList, lessons: Lessons) -> tuple[float, VoteFit | None]:
    """The factor that puts the members' mean on the scale of the votes, and the fit that says so.

    Each member's gaps on the fold that it left out, against the votes there, give the factor of a
    lone member. Where members differ, their mean has less noise and is smaller: `averaging` is by
    how much. 1 and None where members have no such votes, or where these do not agree with them at
    all.
    """
    gaps, counts = [], []
    for number, head in enumerate(heads):
        places = lessons.left_out(number)
        gaps.append(gaps_of(head, lessons.votes, places))
        counts.append(lessons.votes.counts[places])
    try:
        fit = fit_votes(
            torch.cat(gaps)[:, None], torch.cat(counts), model=lessons.ties, ridge=RIDGE
        )
    except ValueError:
        return 1.0, None
    unseen = (lessons.folds < 0).nonzero()[:, 0]
    enlarged = averaging(torch.stack([gaps_of(head, lessons.votes, unseen) for head in heads]))
    scale = enlarged * float(fit.estimates)
    if scale <= 0:
        return 1.0, None
    covariance = enlarged**2 * fit.covariance
    return scale, replace(fit, estimates=enlarged * fit.estimates, covariance=covariance)


def averaging(gaps: Tensor) -> float:
    """How much larger the factor of the members' mean is than that of a lone member, by their gaps
    [K, n] on pairs that none learned from: mean_k E g_k² / E ḡ².

    The slope of the truth on g is E[tg]/E[g²], and E[tg] is for ḡ what it is for members on average
    (regression dilution: Carroll et al., Measurement Error in Nonlinear Models, ch. 3).
    """
    mean = float(gaps.mean(0).double().square().mean())
    return float(gaps.double().square().mean()) / mean if mean > 0 else 1.0


def _seed(seed: int, member: int, update: int) -> int:
    return (seed * 64 + member) * 10**7 + update
