"""The page of a pipeline: what came through each stage, who won, and examples; one file."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scoretune.data.store import StoredEdit
from scoretune.evaluate.report import render
from scoretune.evaluate.report.format import percent
from scoretune.training.feedback.pipeline import Stored

EXAMPLES = 24
TITLES = {"kept": "kept", "reversed": "kept, reversed", "refused": "refused"}


class Example(NamedTuple):
    """One picture on its way through the pipeline."""

    prompt: str
    picture: str
    edit: str
    issues: list[str]
    instructions: list[str]
    outcome: str
    verdict: str


def write(folder: Path, stored: Stored, result: Mapping[str, Any]) -> Path:
    """Write `rpo.html` into the run folder; its path."""
    job, summary = stored.job, result["rpo"]
    values = {
        "title": f"rich preferences of {job.model}",
        "roles": [
            ("critic", job.critic),
            ("writer", job.writer),
            ("editor", job.editor),
            ("reward of the filter", job.reward),
            *([("second reward", job.agree)] if job.agree else []),
        ],
        "stages": _stages(summary),
        "acceptance": [
            (category, counts["edits"], counts["kept"], _share(counts["kept"], counts["edits"]))
            for category, counts in summary["acceptance"].items()
        ],
        "verdicts": list(summary["verdicts"].items()),
        "wins": _wins(result.get("training", {}), job.reward),
        "examples": _examples(stored),
    }
    return render.write(folder / "rpo.html", render.text("rpo.html", values, __package__))


def _stages(summary: Mapping[str, Any]) -> list[tuple[str, int]]:
    said, plans = summary["critiques"], summary["plans"]
    return [
        ("pictures", summary["pictures"]),
        ("critiques that could be read", said["read"]),
        ("critiques that could not, after two more attempts", said["malformed"]),
        ("pictures with nothing wrong", said["nothing wrong"]),
        ("plans with instructions", plans["with instructions"]),
        ("plans that could not be read", plans["malformed"]),
        ("edits", summary["edits"]),
        ("pairs", summary["pairs"]),
    ]


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "–"


def _wins(training: Mapping[str, Any], reward: str) -> list[tuple[str, str, str, str]]:
    """Of each scorer: its name, whether the filter saw it, the share of wins and its interval."""
    rows = []
    for name, score in training.get("wins", {}).items():
        seen = name == "reward" or name in reward
        label = f"{reward} (reward)" if name == "reward" else name
        low, high = max(0.0, score["low"]), min(1.0, score["high"])
        interval = f"{percent(low)} to {percent(high)}"
        rows.append((label, "yes" if seen else "no", percent(score["overall"]), interval))
    return rows


def _examples(stored: Stored) -> list[Example]:
    """As many kept ones as others, where there are so many."""
    verdicts = stored.verdicts()
    kept = [row for row, edit in verdicts.items() if edit.verdict["outcome"] == "kept"]
    others = [row for row in verdicts if row not in set(kept)]
    half = EXAMPLES // 2
    rows = sorted([*kept[: EXAMPLES - min(half, len(others))], *others[:half]])
    critiques = stored.critiques()
    return [_example(stored, verdicts[row], critiques[row]) for row in rows]


def _example(stored: Stored, edit: StoredEdit, critique: Any) -> Example:
    store, verdict = stored.store, edit.verdict
    sample = store.sample(edit.sample)
    assert edit.edited is not None, "only what came out is judged"
    numbers = f"{verdict['reason']}: reward {verdict['gain']:+.3f}"
    if verdict["second"] is not None:
        numbers += f", second {verdict['second']:+.3f}"
    return Example(
        prompt=sample.prompt,
        picture=_embedded(store.picture(sample.picture)),
        edit=_embedded(store.picture(store.sample(edit.edited).picture)),
        issues=[f"{issue.what} ({issue.category})" for issue in critique.issues],
        instructions=edit.instructions,
        outcome=TITLES[verdict["outcome"]],
        verdict=f"{numbers}, distance {verdict['distance']:.3f}",
    )


def _embedded(path: Path) -> str:
    kind = {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
