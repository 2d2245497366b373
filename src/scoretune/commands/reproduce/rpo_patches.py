"""Rich Preference Optimization (arXiv 2503.11720) in the smallest world of pictures.

What is learned from differs, the number of pairs and of updates does not: two of the base model's
own pictures of a prompt, or a picture and its edit. The editor mends colours and fails at a share
of pictures, of which it makes noise; the filter keeps edits that gain enough of the reward.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.commands.reproduce import patch_pairs, patch_world
from scoretune.commands.reproduce.base import (
    Cell,
    Numbers,
    Page,
    by_arm,
    interval,
    kept_tensors,
    shown,
)
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.patch_pairs import LEAST_GAIN, PicturePairs

UPDATES, RATE, PER_PROMPT = 100, 3e-5, 64
PICTURES = 600
"""Of the base model, two of a prompt: what pairs and edits are made from."""


class Arm(NamedTuple):
    """Diffusion-DPO's B and how many pairs are plain and how many edits; the share of edits that
    are noise, and whether they are filtered."""

    beta: float = 5000
    plain: int = 0
    edits: int = 0
    failing: float = 0.0
    filtered: bool = True


ARMS = {
    "plain, 150": Arm(plain=150),
    "plain, 300": Arm(plain=300),
    "edits, 150": Arm(edits=150),
    "both, 75 + 75": Arm(plain=75, edits=75),
    "20 % fail, filtered": Arm(edits=150, failing=0.2),
    "20 % fail, unfiltered": Arm(edits=150, failing=0.2, filtered=False),
    "50 % fail, filtered": Arm(edits=150, failing=0.5),
    "50 % fail, unfiltered": Arm(edits=150, failing=0.5, filtered=False),
    "plain, 150, B 20000": Arm(20_000, plain=150),
    "edits, 150, B 20000": Arm(20_000, edits=150),
}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run of each arm and seed."""
    return patch_world.cells_of(learned, ARMS, seeds, 50 if quick else 1)


def learned(label: str, seed: int, scale: int, folder: Path) -> Numbers:
    """A run, shortened by `scale`: its pairs, and how its pictures do against the base model's."""
    arm = ARMS[label]
    world = patch_world.base(folder, patch_world.UPDATES // scale)
    policy = patch_world.trainable(world)
    prompts = [p for p in patch_world.PROMPTS for _ in range(max(2, PER_PROMPT // scale))]
    count = max(24, PICTURES // scale)

    def drawn(prompts: list[str], number: int) -> Tensor:
        return patch_world.drawn(policy, prompts, torch.Generator().manual_seed(number))

    originals = kept_tensors(
        folder / f"pictures-{seed}-{count}-{len(prompts)}.safetensors",
        lambda: {"pictures": drawn(_prompts(count), seed), "base": drawn(prompts, 1_000 + seed)},
    )
    made, kept = pairs(arm, originals["pictures"], scale, torch.Generator().manual_seed(seed))
    learning = patch_pairs.tuned(
        policy, made, beta=arm.beta, rate=RATE, updates=max(2, UPDATES // scale), seed=seed
    )
    tuned = drawn(prompts, 1_000 + seed)
    sides = [patch_world.reward(side, made.prompts).mean() for side in made[:2]]
    return {
        **_compared(originals["base"], tuned, prompts, _judge(folder, scale)),
        "implicit accuracy": learning["implicit accuracy"],
        "accepted": kept,
        "gap": float(sides[0] - sides[1]),
        "distance": float((made.better - made.worse).abs().mean()),
    }


def _prompts(count: int) -> list[str]:
    return [patch_world.PROMPTS[(place // 2) % 3] for place in range(count)]


def pairs(
    arm: Arm, pictures: Tensor, scale: int, generator: torch.Generator
) -> tuple[PicturePairs, float]:
    """The pairs of an arm, made from pictures [n, 3, 8, 8], and the share of edits accepted."""
    prompts = _prompts(len(pictures))
    ranked = patch_pairs.ranked(pictures[::2], pictures[1::2], prompts[::2])
    mended = patch_pairs.edited(pictures, prompts, torch.Generator())
    planned = (mended != pictures).flatten(1).any(1)  # of the others nothing is wrong
    edited = patch_pairs.edited(pictures, prompts, generator, failing=arm.failing)
    gain = patch_world.reward(edited, prompts) - patch_world.reward(pictures, prompts)
    accepted = planned & (gain > LEAST_GAIN)
    rows = (accepted if arm.filtered else planned).nonzero().flatten().tolist()
    plain, rows = max(arm.plain // scale, min(arm.plain, 4)), rows[: max(arm.edits // scale, 4)]
    rows = rows if arm.edits else []
    if scale == 1 and len(rows) < arm.edits:
        raise ValueError(f"{len(rows)} edits were accepted, not {arm.edits}: take more pictures")
    return PicturePairs(
        torch.cat([ranked.better[:plain], edited[rows]]),
        torch.cat([ranked.worse[:plain], pictures[rows]]),
        ranked.prompts[:plain] + [prompts[row] for row in rows],
    ), float(accepted.sum() / planned.sum())


# ---------------------------------------------------------------------------------- the judge


class Judge(nn.Module):
    """Log-probabilities [B, 3] of the prompts that a picture was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 3),
        )

    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(self.layers(images), -1)


def _judge(folder: Path, scale: int) -> Judge:
    """Taught once, by drawn pictures and what they were drawn for; nothing is trained on it."""
    judge = Judge()
    weights = kept_tensors(folder / f"judge-{scale}.safetensors", lambda: _taught(600 // scale))
    judge.load_state_dict(weights)
    return judge


@cache
def _lesson() -> tuple[Tensor, Tensor]:
    images, prompts = patch_world.pictures(4000, torch.Generator().manual_seed(77))
    return images, torch.tensor([patch_world.PROMPTS.index(prompt) for prompt in prompts])


def _taught(updates: int) -> dict[str, Tensor]:
    torch.manual_seed(77)
    judge, (images, labels) = Judge(), _lesson()
    optimiser = torch.optim.Adam(judge.parameters(), 3e-3)
    for _ in range(updates):
        rows = torch.randint(len(images), (64,))
        noisy = images[rows] + 0.05 * torch.randn(64, *images.shape[1:])
        optimiser.zero_grad()
        F.nll_loss(judge(noisy), labels[rows]).backward()
        optimiser.step()
    return {name: weight.detach().clone() for name, weight in judge.state_dict().items()}


@torch.no_grad()
def _compared(base: Tensor, tuned: Tensor, prompts: list[str], judge: Judge) -> Numbers:
    """From the same noise: reward and judge before and after, and how often the tuned one wins."""
    named = torch.tensor([patch_world.PROMPTS.index(prompt) for prompt in prompts])
    old, new = (patch_world.reward(each, prompts) for each in (base, tuned))
    before, after = (judge(each) for each in (base, tuned))
    beliefs = [each.gather(1, named[:, None]).squeeze(1) for each in (after, before)]
    return {
        "base": float(old.mean()),
        "reward": float(new.mean()),
        "wins": patch_world.wins(new, old),
        "judge's base": float((before.argmax(1) == named).float().mean()),
        "judge": float((after.argmax(1) == named).float().mean()),
        "judge's wins": patch_world.wins(*beliefs),
        "shift": float((tuned - base).abs().mean()),
    }


# ----------------------------------------------------------------------------------- the page

EXPECTED = {
    "plain, 150": ".910",
    "edits, 150": ".983",
    "both, 75 + 75": ".970",
    "20 % fail, filtered": ".983",
    "20 % fail, unfiltered": ".867",
    "50 % fail, filtered": ".987",
    "50 % fail, unfiltered": ".833",
    "plain, 150, B 20000": ".960",
    "edits, 150, B 20000": ".997",
}
"""Win rates of an earlier experiment in another world of this kind, with another base model."""

CLAIMS = (
    ("edits, 150", "plain, 150", "more than 0"),
    ("edits, 150", "plain, 300", "0 or more"),
    ("both, 75 + 75", "plain, 150", "–"),
    ("edits, 150, B 20000", "plain, 150, B 20000", "-2 or more"),
    ("20 % fail, filtered", "20 % fail, unfiltered", "–"),
    ("50 % fail, filtered", "50 % fail, unfiltered", "5 or more"),
)
"""An arm, another, and by how many points of the win rate the first was expected to lead."""


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Every arm's pairs, its wins by reward and by judge, and what was expected."""
    arms = by_arm(results)
    numbers: Numbers = {"arms": {}, "claims": {}}
    rows: list[list[object]] = []
    for label, runs in arms.items():
        spread = {key: interval([run[key] for run in runs]) for key in runs[0]}
        numbers["arms"][label] = spread
        rows.append(
            [
                label,
                shown(spread["wins"], 1, scale=100),
                EXPECTED.get(label, "–"),
                shown(spread["judge's wins"], 1, scale=100),
                shown(spread["judge"], 1, scale=100),
                f"{spread['gap'][0]:+.2f}",
                f"{spread['distance'][0]:.3f}",
                f"{spread['accepted'][0]:.0%}" if ARMS[label].edits else "–",
                f"{spread['shift'][0]:.3f}",
            ]
        )
    one = arms[next(iter(arms))]
    base = {key: interval([run[key] for run in one])[0] for key in ("base", "judge's base")}
    page.text(ABOUT.format(reward=base["base"], judge=base["judge's base"]))
    columns = ["", "wins by the reward, %", "expected", "wins by the judge, %"]
    columns += ["judge accuracy, %", "reward's gap", "distance", "accepted", "shift"]
    page.table(columns, rows)
    numbers["claims"] = _claims(arms, page)
    page.figure("wins", _figure(arms), "Wins by the filter's reward and by the judge, every run")
    return numbers


def _claims(arms: dict[str, list[Numbers]], page: Page) -> Numbers:
    """Leads in points, paired by seed."""
    numbers: Numbers = {}
    rows = []
    for one, other, expected in CLAIMS:
        leads = {
            key: interval(
                [100 * (a[key] - b[key]) for a, b in zip(arms[one], arms[other], strict=True)]
            )
            for key in ("wins", "judge's wins", "judge")
        }
        numbers[f"{one} over {other}"] = leads
        rows.append([one, other, expected, *(shown(lead, 1, sign="+") for lead in leads.values())])
    page.text("By how many points the first of two leads, paired by seed:")
    columns = ["", "over", "expected", "wins by the reward", "wins by the judge", "judge accuracy"]
    page.table(columns, rows)
    return numbers


ABOUT = """
Diffusion-DPO in the smallest world of pictures: 3×8×8, a square of a colour that the prompt names;
the reward is by how much that channel exceeds the others on the brightest patch, and the filter
keeps edits that gain more than 0.05 of it. The judge is a network that was taught what pictures
were drawn for, and that neither filter nor training sees. Of the base model's pictures the reward
is {reward:+.3f}, and the judge's accuracy {judge:.1%}. All arms of a seed are made from the same
600 pictures of the base model: pairs of two of a prompt, or a picture and its edit. B = 5000 unless
said, 100 updates of 32 pairs, Adam at 3e-5 on every weight; the settings are those of the earlier
experiment whose win rates are in the column `expected`. A win is a higher score than the base
model's from the same noise, 192 prompts. Gap and distance are between the two pictures of a pair;
`accepted` is the share of edits that the filter keeps, whether it is applied or not. Where training
runs away, and the guard that rings, are shown by `scoretune reproduce preference-patches`.
"""


def _figure(arms: dict[str, list[Numbers]]) -> Any:
    figure, axes = subplots(size=(6.8, 0.4 * len(arms) + 1.2), grid="x")
    for colour, key, label in (
        (COLOURS[0], "wins", "by the filter's reward"),
        (COLOURS[1], "judge's wins", "by the judge"),
    ):
        for place, runs in enumerate(arms.values()):
            wins = [100 * run[key] for run in runs]
            once = label if place == 0 else None
            axes.plot(wins, [place] * len(wins), "o", color=colour, alpha=0.7, label=once)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.set(xlabel="wins against the base model, %")
    axes.legend(frameon=False, fontsize=8)
    return figure
