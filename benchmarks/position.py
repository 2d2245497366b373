"""Why position moves least: what each link of learning sees of "a three left of a nine".

Of the shipped miniature, through the training sampler: how often both digits are there, and how
often they then stand as asked (by chance: one in three); how far left and right are apart as texts,
and in x̂0; whether the critic's features know where a digit stands; and the reader's reward of a
scene in which two digits change sides, pixel by pixel.

    python benchmarks/position.py [--lora RUN/lora] [--guidance 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from scoretune import recipes
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw_in_hands
from scoretune.data.scenes.world import EMPTY, Ask, Item, Layout
from scoretune.models.lora import load_lora, merge_adapter
from scoretune.policy import Policy
from scoretune.rewards.reader import layouts, load
from scoretune.rollout import Acting, prior, rollout
from scoretune.training.build import Parts, build

EACH = 16
"""Samples of a prompt."""


def stands(layout: Layout, ask: Ask) -> tuple[bool, bool]:
    """Whether both digits are there, and whether they stand as asked."""
    places = [[c for c in range(4) if layout.digits[c] == item.digit] for item in ask.items]
    if not all(places) or ask.relation is None:
        return False, False
    return True, world.stands(ask.relation, places[0][0], places[1][0])


def turned(ask: Ask) -> Ask:
    """With left for right, and above for below."""
    return Ask(ask.task, ask.items, (ask.relation or 0) ^ 1)


def renamed(ask: Ask) -> Ask:
    """With another first digit."""
    other = next(digit for digit in range(10) if Item(digit) not in ask.items)
    return Ask(ask.task, (Item(other), ask.items[1]), ask.relation)


def exploration(policy: Policy, times: Tensor, asks: list[Ask], generator: torch.Generator) -> None:
    judge = load(world.shipped(), "judge")
    both, right = [], []
    for ask in asks:
        condition = policy.encode([ask.text] * EACH)
        x = prior(policy, EACH, generator)
        path = rollout(policy, condition, times, generator, x, acting=Acting(jitter=True))
        with torch.no_grad():
            each = [stands(l, ask) for l in layouts(judge(policy.decode(path.final)))]
        both.append(sum(b for b, _ in each))
        right.append(sum(r for _, r in each))
    drawn, reached = EACH * len(asks), sum(r > 0 for r in right) / len(asks)
    print(
        f"{len(asks)} prompts × {EACH}: both digits {sum(both) / drawn:.3f}, as asked "
        f"{sum(right) / drawn:.3f}, of those with both {sum(right) / sum(both):.3f} (chance .333); "
        f"prompts with one right {reached:.2f}"
    )


@torch.no_grad()
def texts(policy: Policy, times: Tensor, asks: list[Ask], generator: torch.Generator) -> None:
    ask = Ask("position", (Item(1), Item(7)), 0)
    for name, other in (("right for left", turned(ask)), ("another digit", renamed(ask))):
        first, second = policy.encode([ask.text, other.text]).summary
        apart = (first - second).norm(dim=-1)
        print(f"distance of token states, {name}:", [round(float(d), 2) for d in apart])
    asked = (asks, [turned(a) for a in asks], [renamed(a) for a in asks])
    told = [policy.encode([a.text for a in each]) for each in asked]
    path = rollout(policy, told[0], times, generator, prior(policy, len(asks), generator))
    for k in range(0, len(path.data), 2):
        said = [policy.estimate(path.states[k], path.times[k], c).data for c in told]
        moved = [float((data - said[0]).flatten(1).norm(dim=1).mean()) for data in said[1:]]
        by = f"{moved[0]:.3f} by the relation, {moved[1]:.3f} by a digit"
        print(f"t = {float(times[k]):.2f}: x̂0 moves {by}")


def critic(policy: Policy, times: Tensor, asks: list[Ask], generator: torch.Generator) -> None:
    judge = load(world.shipped(), "judge")
    condition = policy.encode([a.text for a in asks])
    x = prior(policy, len(asks), generator)
    path = rollout(policy, condition, times, generator, x, acting=Acting(features=True))
    assert path.features is not None
    with torch.no_grad():
        drawn = layouts(judge(policy.decode(path.final)))
    firsts = [(l.digits, a.items[0].digit) for a, l in zip(asks, drawn, strict=True)]
    there = np.array([digit in digits for digits, digit in firsts])
    column = np.array([digits.index(d) % 2 for digits, d in firsts if d in digits])
    fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    for k in (2, 4, 6):
        seen = {"the critic's features": path.features[k], "x̂0": path.data[k].flatten(1)}
        auc = {
            name: cross_val_score(fit, s.numpy()[there], column, cv=4, scoring="roc_auc").mean()
            for name, s in seen.items()
        }
        by = ", ".join(f"{name} {value:.2f}" for name, value in auc.items())
        print(f"t = {float(times[k]):.2f}: AUC of the first digit's column ({len(column)}): {by}")


@torch.no_grad()
def reader(parts: Parts, asks: list[Ask]) -> None:
    rng, rows = np.random.default_rng(0), []
    for ask in [a for a in asks if a.relation == 0]:
        hands = [(int(rng.integers(99)),) * 4] * 2
        one, two = (item.digit for item in ask.items)
        top = Layout((one, EMPTY, EMPTY, EMPTY), (1, 0, 0, 0))
        bottom = Layout((EMPTY, EMPTY, two, EMPTY), (0, 0, 2, 0))
        above, below = draw_in_hands([top, bottom], "reader", hands)
        frames = [
            np.maximum(np.roll(above, 16 - s, axis=2), np.roll(below, s, axis=2))
            for s in range(0, 17, 2)
        ]
        pictures = torch.from_numpy(np.stack(frames)).float()
        rows.append(parts.reward(pictures, [ask.text] * len(frames)))
    means = [round(float(m), 3) for m in torch.stack(rows).mean(0)]
    print(f"reward as two digits change sides, every 2 of 16 pixels ({len(rows)} scenes): {means}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--lora", type=Path, help="folder of a fine-tuned run's LoRA")
    options.add_argument("--guidance", type=float, default=1.0)
    options.add_argument("--prompts", type=int, default=16)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    parts = build(recipes.named("score_as_action"))
    policy, times = parts.policy, parts.method.source.times
    if arguments.lora:
        merge_adapter(policy.backbone.network)
        load_lora(policy.backbone.network, arguments.lora)
    policy.guidance = arguments.guidance
    trained = [a for a in world.training_asks() if a.task == "position"]
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(trained), generator=generator).tolist()
    exploration(policy, times, [trained[i] for i in order[: arguments.prompts]], generator)
    texts(policy, times, [trained[i] for i in order[:48]], generator)
    if arguments.guidance == 1 and not arguments.lora:
        critic(policy, times, [trained[i] for i in order[:256]], generator)
        reader(parts, [trained[i] for i in order[:64]])


if __name__ == "__main__":
    main()
