"""The miniature Stable Diffusion learns from people's choices, simulated: pairs of its own pictures
with votes whose noise depends on the prompt, and the policy's own samples ranked as it learns.

Every seed has 2,000 pairs of its own, made once and kept; offline arms learn from the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.fine_tuning import (
    QUICK,
    Runs,
    ahead,
    final,
    fine_tune,
    gain,
    points,
)
from scoretune.commands.reproduce.voted_pairs import (
    AGREED,
    DISPUTED,
    PAIRS,
    RATERS,
    TIE,
    judge_of,
    judged,
    labelled,
    vote,
)
from scoretune.data.prompts import read_prompts
from scoretune.evaluate.samples import deployed_times, sample
from scoretune.policy import Policy
from scoretune.training.run_folder import load

NOISE = 20240  # the seed of all samples that are judged


class Arm(NamedTuple):
    """A recipe with changes. `labels` says whose it learns from on the pairs, "votes" or the
    "judge", and is empty where it draws its own. `tried` are the changes among which the tuning
    picked the arm's own."""

    name: str
    recipe: str
    changes: Sequence[str]
    picked: Sequence[str] = ()
    tried: Sequence[Sequence[str]] = ()
    labels: str = ""


def _grid(*settings: tuple[str, Sequence[str]]) -> list[list[str]]:
    """Every combination of the values of settings."""
    named = [[f"{name}={value}" for value in values] for name, values in settings]
    return [list(each) for each in itertools.product(*named)]


RATES = ("optimiser.learning_rate", ("1e-3", "3e-3"))


def _offline(
    name: str, *changes: str, betas: Sequence[str] = ("100", "1000"), labels: str = "votes"
) -> Arm:
    every = ["sizes.batch=32", "updates=500", "guard.action=off", "evaluation.every=0"]
    tried = _grid(RATES, ("objective.beta", betas))
    picked = ["optimiser.learning_rate=3e-3", f"objective.beta={betas[0]}"]
    return Arm(name, "dpo", [*every, *changes], picked, tried, labels)


def _online(
    name: str, recipe: str, *changes: str, beta: tuple[str, Sequence[str]] | None = None
) -> Arm:
    every = ["guard.action=off", "reward=reader", *changes]
    tried = _grid(RATES, *([] if beta is None else [beta]))
    picked = [
        "optimiser.learning_rate=3e-3",
        *([] if beta is None else [f"{beta[0]}={beta[1][0]}"]),
    ]
    return Arm(name, recipe, every, picked, tried)


VOTES = "objective.dispersion=votes"
JUDGED = "Diffusion-DPO, the judge's labels"
ARMS = {
    # Offline: 64,000 network evaluations, and 40,000 of drawing the pairs, which all share; the
    # others about 78,000.
    "Diffusion-DPO": _offline("dpo"),
    JUDGED: _offline("dpo-judge", "objective.ties=drop", labels="judge"),
    "IPO": _offline("ipo", "objective.preset=ipo"),
    "SimPO": _offline("simpo", "objective.preset=simpo", betas=("10", "100")),
    "Mallows-θ": _offline("mallows-theta", "objective.preset=mallows_theta", VOTES),
    "Mallows-φ": _offline("mallows-phi", "objective.preset=mallows_phi", VOTES),
    "Rainbow": _offline("rainbow", "objective.preset=rainbow", VOTES, betas=("10", "100")),
    "KTO": _offline("kto", "objective.preset=kto"),
    "online DPO": _online(
        *("online-dpo", "online_dpo", "updates=43", "evaluation.every=22"),
        beta=("objective.beta", ("100", "1000")),
    ),
    "D3PO": _online(
        *("d3po", "d3po", "updates=41", "evaluation.every=21"),
        beta=("objective.beta", ("1", "0.1")),
    ),
    "SPO": _online(
        *("spo", "spo", "updates=52", "evaluation.every=26"),
        beta=("objective.beta", ("1", "0.1")),
    ),
    "DDPO": _online("ddpo", "ddpo", "updates=41", "evaluation.every=21"),
    "score as action": _online(
        "score-as-action", "score_as_action", "updates=68", "evaluation.every=34"
    ),
}
FEW = 2  # pairs of a rehearsal
OFFLINE_QUICK = [
    *("updates=1", "sizes.batch=2", "sampling.steps=3"),
    *("evaluation.per_task=1", "evaluation.steps=2", "evaluation.every=1"),
]
EXPECTED = ("Diffusion-DPO", "online DPO", "DDPO")
"""The arms of which something was expected."""
TUNING_SEEDS = (11, 12, 13)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """The pairs of each seed, then a run of each arm and seed."""
    return _cells(EXPECTED[:1] if quick else ARMS, seeds, quick)


def _cells(labels: Iterable[str], seeds: int, quick: bool) -> list[Cell]:
    count = FEW if quick else PAIRS
    made = [_votes(seed, count) for seed in range(seeds)]
    for arm in (ARMS[label] for label in labels):
        made += [_run(arm, arm.picked, seed, quick, str(seed)) for seed in range(seeds)]
    return made


def _votes(seed: int, count: int) -> Cell:
    return Cell(f"pairs-{seed}", vote, {"seed": seed, "count": count}, keeps_files=True)


def _run(arm: Arm, picked: Sequence[str], seed: int, quick: bool, which: str) -> Cell:
    count = FEW if quick else PAIRS
    short = (OFFLINE_QUICK if arm.labels else QUICK) if quick else []
    arguments: dict[str, Any] = {
        "recipe": arm.recipe,
        "changes": [*arm.changes, *picked, f"seed={seed}", *short],
        "name": f"{arm.name}-{which}",
        "pairs": count if arm.labels else 0,
        "labels": arm.labels,
        "seed": seed,
        "per_task": 1 if quick else 30,
    }
    return Cell(f"{arm.name}-{which}", learned, arguments, keeps_files=True)


class Tuning:
    """What the arms' rates and β were chosen by: every combination, on seeds of its own."""

    @staticmethod
    def cells(seeds: int, quick: bool) -> list[Cell]:
        """A run of each arm, combination and seed; a rehearsal takes one that was picked."""
        own = TUNING_SEEDS[:seeds]
        return [
            _run(arm, tried, seed, quick, f"{number}-{seed}")
            for label, arm in ARMS.items()
            if label in EXPECTED[:1] or not quick
            for number, tried in enumerate(arm.tried)
            if list(tried) == list(arm.picked) or not quick
            for seed in own
        ]

    @staticmethod
    def present(results: dict[str, Numbers], page: Page) -> Numbers:
        """The judge's mean at the end of each."""
        page.text(
            "Judge accuracy on held-out prompts at the end of runs, means over the tuning seeds "
            f"{', '.join(map(str, TUNING_SEEDS))} or the first of them. The arms of part `scenes` "
            "take the combination in bold."
        )
        numbers: Numbers = {}
        rows = []
        for label, arm in ARMS.items():
            for number, tried in enumerate(arm.tried):
                runs = by_arm(results).get(f"{arm.name}-{number}", [])
                if not runs:
                    continue
                words, end = " ".join(tried), final(runs, "judge")[0]
                numbers[f"{label}: {words}"] = end
                own = list(tried) == list(arm.picked)
                rows.append([label, f"**{words}**" if own else words, f"{end:.3f}", len(runs)])
        page.table(["", "settings", "judge", "runs"], rows)
        page.figure("tuning", _tuned(numbers), "Judge accuracy of every combination")
        return numbers


TUNING = Tuning()


class Expected:
    """The three arms of which something was expected, without the others."""

    @staticmethod
    def cells(seeds: int, quick: bool) -> list[Cell]:
        """The pairs of each seed, then a run of each of the three and seed; a rehearsal leaves out
        the one that `scenes` rehearses."""
        return _cells(EXPECTED[1:] if quick else EXPECTED, seeds, quick)

    @staticmethod
    def present(results: dict[str, Numbers], page: Page) -> Numbers:
        """As the whole study's page."""
        return present(results, page)


THREE = Expected()


def _tuned(numbers: Numbers) -> Any:
    figure, axes = subplots(size=(8, 0.22 * len(numbers) + 1.2), grid="x")
    axes.plot(list(numbers.values()), range(len(numbers)), "o", color=COLOURS[0])
    axes.set_yticks(range(len(numbers)), list(numbers), fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="judge accuracy on held-out prompts")
    return figure


# ----------------------------------------------------------------------------------- the runs


def learned(
    recipe: str,
    changes: Sequence[str],
    name: str,
    pairs: int,
    labels: str,
    seed: int,
    per_task: int,
    folder: Path,
) -> Numbers:
    """One run, on the pairs of its seed if it learns from them, and whose pictures win."""
    made = 0
    if pairs:
        where = labelled(folder, seed, pairs)
        changes = [*changes, f"data={judged(where) if labels == 'judge' else where}"]
        made = json.loads((where / "about.json").read_text(encoding="utf-8"))["network_evaluations"]
    numbers = fine_tune(recipe, changes, name, folder)
    policy = load(folder / "runs" / name)
    return {**numbers, "pairs": made, "wins": win_rate(policy, per_task)}


def win_rate(policy: Policy, per_task: int) -> float:
    """How often the judge scores the policy's picture of a held-out prompt above the base model's
    from the same noise; of equally good ones half. One prompt a task is a rehearsal, in two steps.
    """
    prompts, judge = read_prompts("scenes-held-out", per_task), judge_of()
    times = deployed_times(policy.backbone, 20 if per_task > 1 else 2)

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
(τ = {AGREED:g}), half are disputed (τ = {DISPUTED:g}). One arm learns from the judge's own labels
of the same pairs instead, and leaves out those that it does not tell apart. Arms that learn as
they draw rank, or reward, their samples by the reader. Everything is measured by the judge on
held-out prompts, through DDIM with 20 steps. The judge is thus behind votes and labels, and is
never seen by the arms that draw; the reader is behind those arms, and is never seen by the offline
ones. Network evaluations count the pictures of the pairs (40,000, which offline arms share),
references and learning. A picture wins where the judge's score is higher by more than {TIE:g} than
that of the base model's from the same noise; equal ones count half.

Settings of Diffusion-DPO (on votes, and used for the judge's labels too) and of online DPO were
chosen in single runs on seed 11; those of the other arms are first guesses, which part `tuning` is
there to replace.
"""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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
    by_name = by_arm(results)
    arms = {label: by_name[arm.name] for label, arm in ARMS.items() if arm.name in by_name}
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
    """What is expected of Diffusion-DPO and of online DPO, and what was measured, where they and
    DDPO were run."""
    numbers: Numbers = {}
    for label in ("Diffusion-DPO", JUDGED):
        if label in arms:
            won = numbers[f"gain of {label}"] = gain(arms[label], "judge")
            page.text(
                f"{label}: {points(won)} points; expected of labels by the judge were 15 or more, "
                "with an interval above 8."
            )
    if "online DPO" in arms and "DDPO" in arms:
        online, ddpo = arms["online DPO"], arms["DDPO"]
        lead = numbers["online DPO ahead of DDPO"] = ahead(online, ddpo, "judge")
        page.text(
            f"Online DPO ends {points(lead)} points ahead of DDPO, with {work(online[0]):,} "
            f"network evaluations against {work(ddpo[0]):,}; expected was no less, with no more "
            "of them."
        )
    return numbers


def _figure(arms: dict[str, Runs]) -> Any:
    """Gains with their intervals, one row an arm."""
    figure, axes = subplots(size=(6.8, 0.45 * len(arms) + 1.2), grid="x")
    offline = {label for label, arm in ARMS.items() if arm.labels}
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
