"""What `scoretune data check` prints, a line a topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scoretune.commands.data.check import Checked
from scoretune.core.errors import listed


def lines(checked: Checked) -> Iterator[tuple[str, str]]:
    """Topics and what is said of each."""
    report = checked.as_dict()
    yield "columns", _columns(report["columns"])
    yield (
        "rows",
        _joined(
            f"{report['rows']:,}",
            (report["unjudged"], "unjudged"),
            (len(report["broken"]), "that cannot be read"),
            (report["repeated"], "of a pair and rater that an earlier row has"),
        ),
    )
    if not report["pairs"]:
        return
    what = "pairs" if checked.paired else "judged"
    yield (
        what,
        _joined(
            f"{report['pairs']:,} of {report['prompts']:,} prompts",
            (report["ties"], "ties"),
            (report["disputed"], "disputed by raters"),
            (report["identical"], "with two identical sides"),
            (report.get("empty", 0), "with an empty completion"),
        ),
    )
    labels = report["labels"]
    first, second = ("the first", "the second") if checked.paired else ("liked", "not liked")
    yield (
        "labels",
        _joined(
            f"mean {labels['mean']:.3f}",
            (labels["first"], first),
            (labels["second"], second),
            (labels["ties"], "ties"),
            (labels["soft"], "of them between 0, 1/2 and 1"),
        ),
    )
    if report["position"] is not None:
        yield "position", _share("the first is preferred", report["position"], "first")
    agreement = report["raters"]["agreement"]
    if report["raters"]["named"] or agreement is not None:
        yield "raters", _raters(report["raters"]["named"], agreement)
    if "sizes" in report:
        yield "sizes", _sizes(report["sizes"], report["two_sizes"])
    else:
        yield from _texts(report, checked.paired)


def _sizes(sizes: list[dict[str, int]], two: int) -> str:
    text = listed([f"{s['width']}x{s['height']} ({s['count']:,})" for s in sizes])
    return text + (f"; {two:,} pairs of two sizes, which training scales alike" if two else "")


def _texts(report: dict[str, Any], paired: bool) -> Iterator[tuple[str, str]]:
    """How long texts are, and whether the longer ones are preferred."""
    names = ("chosen", "rejected") if paired else ("completions",)
    for name, side in zip(names, report["lengths"], strict=True):
        yield (
            name,
            (
                f"{side['median']:,.0f} characters in the median, {side['p90']:,.0f} at 90 %, "
                f"at most {side['longest']:,}"
            ),
        )
    if report["longer"] is not None:
        yield "length", _share("the longer is preferred", report["longer"], "preferred")


def _columns(columns: dict[str, Any]) -> str:
    parts = [f"{name} {column!r}" for name, column in columns.items() if column is not None]
    return ", ".join(parts)


def _joined(head: str, *counts: tuple[int, str]) -> str:
    return ", ".join([head, *(f"{count:,} {what}" for count, what in counts if count)])


def _share(what: str, share: dict[str, float], name: str) -> str:
    text = (
        f"{what} in {100 * share[name]:.1f} % of {share['of']:,} (95 % interval "
        f"{100 * share['low']:.1f} to {100 * share['high']:.1f} %)"
    )
    return text + ("" if share["low"] <= 0.5 <= share["high"] else ": a bias")


def _raters(named: int, agreement: dict[str, float] | None) -> str:
    text = f"{named:,} named" if named else "no names"
    if agreement is None:
        return f"{text}; no pair has two"
    return (
        f"{text}; two of one pair agree in {100 * agreement['share']:.1f} % of "
        f"{agreement['compared']:,} comparisons, {100 * agreement['beyond_chance']:.1f} % beyond "
        "chance"
    )
