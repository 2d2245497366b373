"""Rich Preference Optimization (arXiv 2503.11720) on the miniature Stable Diffusion.

Every seed has one store: the base model's pictures, two of a prompt, what the reader criticises,
and the edits of the shipped editor, which redraws cells and spoils a share of pictures. All arms of
a seed learn from pairs out of that store, equally many and by equally many updates.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scoretune import recipes
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.fine_tuning import fine_tune, gain, points
from scoretune.core.records import spans
from scoretune.data.prompts import in_laps, read_prompts
from scoretune.data.store import open_store
from scoretune.policy import Policy
from scoretune.rewards.base import checked
from scoretune.rewards.catalog import named_reward
from scoretune.training.build import build_policy
from scoretune.training.feedback.filters import Filter
from scoretune.training.feedback.pipeline import Job, Pipeline, Stored, cast_of

PAIRS, PROMPTS = 200, 700
FAILING = (0.0, 0.5)
LEAST_GAIN = 0.05
"""Of the reader's score, in [0, 1]: what an edit gains, and by how much a plain pair differs."""


class Arm(NamedTuple):
    """How many pairs are plain and how many edits, as shares of `PAIRS`; the share of edits that
    are spoilt, and whether they are filtered."""

    name: str
    plain: float = 0.0
    edits: float = 0.0
    failing: float = 0.0
    filtered: bool = True


ARMS = {
    "plain": Arm("plain", plain=1),
    "edits": Arm("edits", edits=1),
    "50 % fail, filtered": Arm("fails-50-filtered", edits=1, failing=0.5),
    "50 % fail, unfiltered": Arm("fails-50-unfiltered", edits=1, failing=0.5, filtered=False),
}
REHEARSED = ("plain", "edits")
EVERY = (
    *("sizes.batch=16", "updates=60", "guard.action=off", "evaluation.every=0"),
    *("evaluation.steps=10", "reward=reader"),
    *("optimiser.learning_rate=3e-3", "objective.beta=100"),
)
QUICK = (
    *("updates=1", "sizes.batch=2", "evaluation.per_task=1", "evaluation.steps=2"),
    "evaluation.every=1",
)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """The store of each seed, then a run of each arm and seed."""
    size = {"pairs": 2, "prompts": 24} if quick else {"pairs": PAIRS, "prompts": PROMPTS}
    made = [
        Cell(f"store-{seed}", made_of, {"seed": seed, **size}, keeps_files=True)
        for seed in range(seeds)
    ]
    for label in REHEARSED if quick else ARMS:
        made += [
            Cell(
                f"{ARMS[label].name}-{seed}",
                learned,
                {
                    "label": label,
                    "changes": [*EVERY, f"seed={seed}", *(QUICK if quick else ())],
                    "seed": seed,
                    **size,
                },
                keeps_files=True,
            )
            for seed in range(seeds)
        ]
    return made


# ----------------------------------------------------------------------------------- the pairs


def made_of(seed: int, pairs: int, prompts: int, folder: Path) -> Numbers:
    """What the store of a seed holds, by the share of edits that are spoilt."""
    stored = _stored(folder, seed, prompts)
    numbers: Numbers = {"plain": len(_plain(stored[0.0]))}
    for failing, jobs in stored.items():
        verdicts = [edit.verdict["outcome"] for edit in jobs.verdicts().values()]
        numbers[f"{failing:g}"] = {"edits": len(verdicts), "kept": verdicts.count("kept")}
    return numbers


def _stored(folder: Path, seed: int, count: int) -> dict[float, Stored]:
    """The store of a seed with all its jobs done, by the share of edits that are spoilt."""
    store = open_store(str(folder / "stores" / f"{seed}-{count}"), create=True)
    texts = in_laps(read_prompts("scenes", 200), count, seed)

    def policy() -> Policy:
        torch.manual_seed(seed)
        return build_policy(recipes.ddpo(), torch.device("cpu"))

    jobs = {}
    for failing in FAILING:
        job = Job(
            model="scenes",
            prompts=tuple(texts),
            critic="reader",
            writer="reader",
            editor=f"scenes(fails={failing:g})",
            reward="reader",
            per_prompt=2,
            seed=seed,
            filter=Filter(threshold=LEAST_GAIN),
        )
        Pipeline(store, job, cast_of(job, policy), lambda *_: None).run()
        jobs[failing] = Stored(store, job)
    return jobs


Row = dict[str, Any]


@torch.no_grad()
def _plain(stored: Stored) -> list[Row]:
    """The better and the worse of two pictures of a prompt, where the reward tells them apart."""
    samples, store = list(stored.samples("pictures").values()), stored.store
    reward, scores = named_reward("reader"), []
    for span in spans(len(samples), 64):
        images = torch.stack([store.pixels(sample.picture) for sample in samples[span]])
        prompts = [sample.prompt for sample in samples[span]]
        scores += checked(reward, "reader", images, prompts).tolist()
    rows = []
    for place in range(0, len(samples), 2):
        lead = scores[place] - scores[place + 1]
        if abs(lead) > LEAST_GAIN:
            better, worse = (samples[place + (lead < 0)], samples[place + (lead > 0)])
            rows.append(_row(stored, better.prompt, better.picture, worse.picture))
    return rows


def _edits(stored: Stored, filtered: bool) -> list[Row]:
    """Edits before their pictures: those kept by the filter, or all that changed anything."""
    store, rows = stored.store, []
    for edit in stored.verdicts().values():
        if edit.edited is not None and (edit.verdict["outcome"] == "kept" or not filtered):
            sample, edited = store.sample(edit.sample), store.sample(edit.edited)
            if sample.picture == edited.picture:
                continue  # neither can be preferred
            rows.append(_row(stored, sample.prompt, edited.picture, sample.picture))
    return rows


def _row(stored: Stored, prompt: str, better: str, worse: str) -> Row:
    sides = (str(stored.store.picture(name).resolve()) for name in (better, worse))
    return {"prompt": prompt, **dict(zip(("chosen", "rejected"), sides, strict=True))}


def learned(
    label: str, changes: Sequence[str], seed: int, pairs: int, prompts: int, folder: Path
) -> Numbers:
    """One run on the pairs of an arm."""
    arm = ARMS[label]
    stored = _stored(folder, seed, prompts)[arm.failing]
    rows: list[Row] = []
    for share, kind in ((arm.plain, _plain), (arm.edits, lambda s: _edits(s, arm.filtered))):
        if share:
            wanted = round(share * pairs)
            selected = kind(stored)[:wanted]
            if len(selected) < wanted:
                raise ValueError(
                    f"{len(selected)} pairs for {label}, not {wanted}: take more prompts"
                )
            rows += selected
    where = folder / "pairs" / f"{arm.name}-{seed}-{pairs}"
    part = where.with_name(f"{where.name}.{os.getpid()}")
    shutil.rmtree(where, ignore_errors=True)
    part.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (part / "pairs.jsonl").write_text(lines, encoding="utf-8")
    part.rename(where)
    return fine_tune("dpo", [*changes, f"data={where}"], f"{arm.name}-{seed}", folder)


# ------------------------------------------------------------------------------------ the page

SCORERS = ("judge", "reward")
CLAIMS = (
    ("edits", "plain"),
    ("50 % fail, filtered", "50 % fail, unfiltered"),
)

ABOUT = f"""
Diffusion-DPO from {PAIRS} pairs of the miniature's own pictures. Plain pairs are the better and the
worse of two pictures of a prompt by the reader's score, which must differ by {LEAST_GAIN:g}; edits
are what the reader's critique and the editor `scenes` made of a picture, kept where the reader's
score gains as much. The reader is critic, reward and filter; the judge sees nothing of it. Wins are
over the base model's picture from the same noise, on held-out prompts, through DDIM with 10 steps;
ties count half. The guard is off, so that all arms have equally many updates:
{" ".join(EVERY)}. Rate and B are those that plain pairs of this model were tuned to
(`reproduce preference-scenes --part tuning`); on a seed that is not shown they were looked at
beside a lower rate.
"""


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """The stores, a table of the arms, and who leads whom."""
    page.text(ABOUT)
    by_name = by_arm(results)
    numbers: Numbers = {"stores": by_name["store"], "arms": {}, "leads": {}}
    page.text(_about_stores(by_name["store"]))
    arms = {label: by_name[arm.name] for label, arm in ARMS.items() if arm.name in by_name}
    rows = []
    for label, runs in arms.items():
        one = numbers["arms"][label] = {
            "judge's gain": gain(runs, "judge"),
            "reader's gain": gain(runs, "reader"),
            **{f"{who}'s wins": interval(_wins(runs, who)) for who in SCORERS},
        }
        rows.append(
            [
                label,
                points(one["judge's gain"]),
                shown(one["judge's wins"], 1, scale=100),
                points(one["reader's gain"]),
                shown(one["reward's wins"], 1, scale=100),
            ]
        )
    columns = ["", "judge's gain, points", "wins by the judge, %", "reader's gain"]
    page.table([*columns, "wins by the filter's reward, %"], rows)
    numbers["leads"] = _leads(arms, page)
    page.figure("wins", _figure(arms), "Wins by the judge, every run")
    return numbers


def _about_stores(stores: Sequence[Numbers]) -> str:
    kept = []
    for failing in FAILING:
        both = [one[f"{failing:g}"] for one in stores]
        share = sum(one["kept"] for one in both) / max(sum(one["edits"] for one in both), 1)
        kept.append(f"{share:.0%} where the editor spoils {failing:.0%}")
    plain = ", ".join(str(one["plain"]) for one in stores)
    return f"Plain pairs that each store has: {plain}. Edits kept: {', '.join(kept)}."


def _wins(runs: Iterable[Numbers], who: str) -> list[float]:
    return [float(run["result"]["wins"][who]["overall"]) for run in runs]


def _leads(arms: dict[str, list[Numbers]], page: Page) -> Numbers:
    numbers: Numbers = {}
    rows = []
    for one, other in CLAIMS:
        if one in arms and other in arms:
            leads = {
                who: interval(
                    [
                        a - b
                        for a, b in zip(_wins(arms[one], who), _wins(arms[other], who), strict=True)
                    ]
                )
                for who in SCORERS
            }
            numbers[f"{one} over {other}"] = leads
            rows.append([one, other, *(points(lead) for lead in leads.values())])
    page.text("By how many points of wins the first of two leads, paired by seed:")
    page.table(["", "over", "by the judge", "by the filter's reward"], rows)
    return numbers


def _figure(arms: dict[str, list[Numbers]]) -> Any:
    figure, axes = subplots(size=(6.8, 0.4 * len(arms) + 1.2), grid="x")
    for place, runs in enumerate(arms.values()):
        wins = [100 * value for value in _wins(runs, "judge")]
        axes.plot(wins, [place] * len(wins), "o", color=COLOURS[0], alpha=0.7)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    axes.axvline(50, color="#999999", linewidth=1)
    axes.set(xlabel="wins against the base model by the judge, %")
    return figure
