"""The miniature Stable Diffusion learns from people's choices, simulated: pairs of its own pictures
with votes whose noise depends on the prompt, and the policy's own samples ranked as it learns.

Every seed has 2,000 pairs of its own, made once and kept; offline arms learn from the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.fine_tuning import (
    QUICK,
    Runs,
    curve,
    final,
    fine_tune,
    gain,
    points,
)
from scoretune.core.config import Ranking
from scoretune.core.records import spans
from scoretune.data.prompts import order, read_prompts
from scoretune.data.scenes.world import shipped
from scoretune.diffusion.named import grid
from scoretune.evaluate.samples import deployed_times, sample
from scoretune.policy import Policy
from scoretune.rewards import reader
from scoretune.rollout import prior, rollout
from scoretune.training.build import build_policy
from scoretune.training.run_folder import load
from scoretune.training.sources.ranking import labels

PAIRS, RATERS = 2000, 3
AGREED, DISPUTED = 0.05, 1.0
"""The judge's score, which lies in [0, 1], that a rater barely sees, by the kind of prompt."""
BATCH = 50  # pairs that are drawn at once
NOISE = 20240  # the seed of all samples that are judged
TIE = 0.01
"""Of the judge's score: below that two pictures are equally good."""


class Arm(NamedTuple):
    """A recipe with changes; `offline`: it learns from the pairs and their votes."""

    name: str
    recipe: str
    changes: Sequence[str]
    offline: bool = False


def _offline(name: str, *changes: str) -> Arm:
    every = ["sizes.batch=32", "updates=200", "guard.action=off", "evaluation.every=0"]
    return Arm(name, "dpo", [*every, *changes], offline=True)


def _online(name: str, recipe: str, *changes: str) -> Arm:
    return Arm(name, recipe, ["guard.action=off", "reward=reader", *changes])


VOTES = "objective.dispersion=votes"
ARMS = {
    "Diffusion-DPO": _offline("dpo", "objective.beta=200", "optimiser.learning_rate=1e-3"),
    "IPO": _offline("ipo", "objective.preset=ipo"),
    "SimPO": _offline("simpo", "objective.preset=simpo"),
    "Mallows-θ": _offline("mallows-theta", "objective.preset=mallows_theta", VOTES),
    "Mallows-φ": _offline("mallows-phi", "objective.preset=mallows_phi", VOTES),
    "Rainbow": _offline("rainbow", "objective.preset=rainbow", VOTES),
    "KTO": _offline("kto", "objective.preset=kto"),
    "online DPO": _online("online-dpo", "online_dpo"),
    "D3PO": _online("d3po", "d3po"),
    "SPO": _online("spo", "spo"),
    "DDPO": _online("ddpo", "ddpo", "updates=34", "evaluation.every=17"),
    "score as action": _online("score-as-action", "score_as_action", "evaluation.every=28"),
}
OFFLINE_QUICK = [
    *("updates=1", "sizes.batch=2", "sampling.steps=3"),
    *("evaluation.per_task=1", "evaluation.steps=2", "evaluation.every=1"),
]
REHEARSED = ("Diffusion-DPO", "online DPO", "DDPO")


def cells(seeds: int, quick: bool) -> list[Cell]:
    """The pairs of each seed, then a run of each arm and seed."""
    count = 8 if quick else PAIRS
    made = []
    for seed in range(seeds):
        arguments: dict[str, Any] = {"seed": seed, "count": count}
        made.append(Cell(f"pairs-{seed}", vote, arguments, keeps_files=True))
        for label, arm in ARMS.items():
            if quick and label not in REHEARSED:
                continue
            short = (OFFLINE_QUICK if arm.offline else QUICK) if quick else []
            run = {
                "recipe": arm.recipe,
                "changes": [*arm.changes, f"seed={seed}", *short],
                "name": f"{arm.name}-{seed}",
                "pairs": count if arm.offline else 0,
                "seed": seed,
                "per_task": 1 if quick else 30,
            }
            made.append(Cell(f"{arm.name}-{seed}", learned, run, keeps_files=True))
    return made


# --------------------------------------------------------------------------------- the pairs


def vote(seed: int, count: int, folder: Path) -> Numbers:
    """Makes the pairs of a seed; how far votes agree with the judge, and what the pairs took."""
    where = labelled(folder, seed, count)
    numbers: Numbers = json.loads((where / "about.json").read_text(encoding="utf-8"))
    return numbers


def labelled(folder: Path, seed: int, count: int) -> Path:
    """A folder of `count` pairs of the base model's pictures with the raters' votes, kept below
    `folder`.

    Half of the prompts are disputed: a rater prefers one picture with probability σ(gap/τ), the gap
    in the judge's score, and τ is AGREED or DISPUTED.
    """
    where = folder / "pairs" / f"{seed}-{count}"
    if where.exists():
        return where
    part = where.with_name(f"{where.name}.{os.getpid()}")
    part.mkdir(parents=True)
    torch.manual_seed(seed)
    policy = build_policy(recipes.ddpo(), torch.device("cpu"))
    prompts = read_prompts("scenes", 200)
    places = [i for lap in range(-(-count // len(prompts))) for i in order(prompts, lap, seed)]
    disputed = set(order(prompts, 0, seed=0)[::2])
    generator = torch.Generator().manual_seed(seed)
    judge, rows = judge_of(), []
    agreeing: dict[float, list[float]] = {AGREED: [], DISPUTED: []}
    for span in spans(count, BATCH):
        which = places[:count][span]
        texts = [prompts.texts[i] for i in which]
        images = drawn(policy, [text for text in texts for _ in range(2)], generator)
        scores = judge(images, [text for text in texts for _ in range(2)]).view(-1, 2).double()
        for place, text in enumerate(texts):
            noise = DISPUTED if which[place] in disputed else AGREED
            gap = scores[place, 0] - scores[place, 1]
            ranking = Ranking(label="votes", temperature=noise, raters=RATERS)
            share, _ = labels(gap[None, None], ranking, generator)
            number, votes = span.start + place, round(float(share) * RATERS)
            files = [f"{number}-{side}.png" for side in range(2)]
            for side, file in enumerate(files):
                _save(images[2 * place + side], part / file)
            rows.append(
                {"prompt": text, "image_0": files[0], "image_1": files[1]}
                | {"votes_0": votes, "votes_1": RATERS - votes}
            )
            if abs(gap) > TIE:
                agreeing[noise].append(float(share if gap > 0 else 1 - share))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (part / "pairs.jsonl").write_text(lines, encoding="utf-8")
    about = {
        "network_evaluations": policy.calls,
        "told apart": sum(map(len, agreeing.values())) / count,
        "agreed": _mean(agreeing[AGREED]),
        "disputed": _mean(agreeing[DISPUTED]),
    }
    (part / "about.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    try:
        part.rename(where)
    except OSError:  # another process was quicker, with the same
        if not where.exists():
            raise
    return where


@torch.no_grad()
def drawn(policy: Policy, texts: Sequence[str], generator: torch.Generator) -> Tensor:
    """Pictures by the policy's own kernel, as the recipes on rewards draw them."""
    times = grid(policy.backbone.process, recipes.ddpo().sampling)
    condition = policy.encode(texts)
    x = prior(policy, len(texts), generator)
    return policy.decode(rollout(policy, condition, times, generator, x).final)


def judge_of() -> reader.Reading:
    """The judge as a score on a log scale, in [0, 1]."""
    return reader.Reading(reader.load(shipped(), "judge"))


def _save(picture: Tensor, file: Path) -> None:
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(file)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


# ----------------------------------------------------------------------------------- the runs


def learned(
    recipe: str,
    changes: Sequence[str],
    name: str,
    pairs: int,
    seed: int,
    per_task: int,
    folder: Path,
) -> Numbers:
    """One run, on the pairs of its seed if it learns from them, and whose pictures win."""
    made = 0
    if pairs:
        where = labelled(folder, seed, pairs)
        changes = [*changes, f"data={where}"]
        made = json.loads((where / "about.json").read_text(encoding="utf-8"))["network_evaluations"]
    numbers = fine_tune(recipe, changes, name, folder)
    policy = load(folder / "runs" / name)
    return {**numbers, "pairs": made, "wins": win_rate(policy, per_task)}


def win_rate(policy: Policy, per_task: int) -> float:
    """How often the judge scores the policy's picture of a held-out prompt above the base model's
    from the same noise; of equally good ones half."""
    prompts, judge = read_prompts("scenes-held-out", per_task), judge_of()
    times = deployed_times(policy.backbone, 20)

    def scores() -> Tensor:
        images = sample(policy, prompts, times=times, seed=NOISE)
        return judge(images, prompts.texts)

    with policy.reference():
        base = scores()
    gap = scores() - base
    return float(((gap > TIE).float() + (gap.abs() <= TIE).float() / 2).mean())


# ----------------------------------------------------------------------------------- the page


ABOUT = f"""
Offline arms learn from {PAIRS:,} pairs of the base model's pictures, the same for all and new for
each seed. {RATERS} independent raters vote on each pair: one prefers a picture with probability
σ(gap/τ), the gap in the judge's score, which lies in [0, 1]. Half of the prompts are agreed on
(τ = {AGREED:g}), half are disputed (τ = {DISPUTED:g}). Arms that learn as they draw rank, or
reward, their samples by the reader. Everything is measured by the judge on held-out prompts,
through DDIM with 20 steps. The judge is thus behind the votes, and is never seen by the arms that
draw; the reader is behind those arms, and is never seen by the offline ones. Learning rate and β of
every arm were chosen on seeds 11 and 12. Network evaluations count the pictures of the pairs,
references and learning. A picture wins where the judge's score is higher by more than {TIE:g} than
that of the base model's from the same noise; equal ones count half.
"""


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """The votes, a table of the arms, what was expected of two of them, and a figure."""
    page.text(ABOUT)
    votes = [numbers for name, numbers in results.items() if name.startswith("pairs-")]
    numbers: Numbers = {"votes": {}, "arms": {}}
    for part in ("told apart", "agreed", "disputed"):
        numbers["votes"][part] = _mean([one[part] for one in votes])
    page.text(
        "The judge tells {told apart:.0%} of the pairs apart; of these votes go its way in "
        "{agreed:.0%} on agreed prompts and in {disputed:.0%} on disputed ones.".format(
            **numbers["votes"]
        )
    )
    arms = {
        label: [results[f"{arm.name}-{seed}"] for seed in range(len(votes))]
        for label, arm in ARMS.items()
        if f"{arm.name}-0" in results
    }
    rows = []
    for label, runs in arms.items():
        arm = numbers["arms"][label] = _summary(runs)
        rows.append(
            [
                label,
                points(arm["gain"]),
                f"{arm['final'][0]:.3f}",
                shown(arm["wins"], 1, scale=100),
                points(arm["reader's gain"]),
                f"{arm['network_evaluations']:,}",
                f"{arm['seconds']:.0f}",
            ]
        )
    columns = ["", "judge's gain, points", "final", "wins, %", "reader's gain"]
    page.table([*columns, "network evaluations", "seconds"], rows)
    numbers |= _claims(arms, page)
    page.figure("gains", _figure(arms), "The judge's gain of every arm, with 95 % intervals")
    return numbers


def _summary(runs: Runs) -> Numbers:
    return {
        "gain": gain(runs, "judge"),
        "final": final(runs, "judge"),
        "reader's gain": gain(runs, "reader"),
        "wins": interval([run["wins"] for run in runs]),
        "network_evaluations": work(runs[0]),
        "seconds": _mean([run["result"]["seconds"] for run in runs]),
    }


def work(run: Numbers) -> int:
    """Network evaluations of a run, with those of the pairs it learned from."""
    return int(run["result"]["network_evaluations"] + run["pairs"])


def _claims(arms: dict[str, Runs], page: Page) -> Numbers:
    """What is expected of Diffusion-DPO and of online DPO, and what was measured."""
    won = gain(arms["Diffusion-DPO"], "judge")
    pairs = zip(arms["online DPO"], arms["DDPO"], strict=True)
    ends = [curve(a, "judge")[1][-1] - curve(b, "judge")[1][-1] for a, b in pairs]
    ahead = interval(ends)
    mine, theirs = work(arms["online DPO"][0]), work(arms["DDPO"][0])
    page.text(
        f"Diffusion-DPO gains {points(won)} points; expected were 15 or more, with an interval "
        f"above 8. Online DPO ends {points(ahead)} points ahead of DDPO, with {mine:,} network "
        f"evaluations against {theirs:,}; expected was no less, with no more of them."
    )
    return {"Diffusion-DPO's gain": won, "online DPO ahead of DDPO": ahead}


def _figure(arms: dict[str, Runs]) -> Any:
    """Gains with their intervals, one row an arm."""
    figure, axes = subplots(size=(6.8, 0.45 * len(arms) + 1.2), grid="x")
    offline = {label for label, arm in ARMS.items() if arm.offline}
    for place, (label, runs) in enumerate(arms.items()):
        mean, low, high = (100 * value for value in gain(runs, "judge"))
        colour = COLOURS[0] if label in offline else COLOURS[1]
        axes.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=colour, capsize=3
        )
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.axvline(0, color="#999999", linewidth=1)
    axes.set(xlabel="judge's gain on held-out prompts, points (blue: from the same votes)")
    return figure
