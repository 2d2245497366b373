"""What a store holds, in numbers."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scoretune.commands.data.tally import wilson
from scoretune.core.errors import listed

if TYPE_CHECKING:
    from scoretune.data.store import Vote
    from scoretune.data.store.store import Store


def measured(store: Store) -> dict[str, Any]:
    """How much of everything there is, where samples and pairs came from, and raters' votes."""
    pairs, votes = {pair.id: pair for pair in store.pairs()}, store.votes()
    samples = store.samples()
    by_rater: dict[int, list[Vote]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    gold = {id: pair.gold for id, pair in pairs.items() if pair.gold is not None}
    return {
        **store.counts(),
        "prompts": len(store.prompts()),
        "sources": dict(Counter(sample.source for sample in samples)),
        "models": dict(Counter(sample.model for sample in samples if sample.model)),
        "pair_sources": dict(Counter(pair.source for pair in pairs.values())),
        "voted_pairs": len({vote.pair for vote in votes}),
        "choices": dict(Counter(vote.choice for vote in votes)),
        "left": _left(votes),
        "by_rater": [
            {"id": rater.id, "name": rater.name, "kind": rater.kind}
            | _of_rater(by_rater.get(rater.id, []), gold)
            for rater in store.raters()
        ],
    }


def _left(votes: list[Vote]) -> dict[str, float] | None:
    """How often the picture on the left is preferred, with its 95 % interval (Wilson)."""
    decided = [vote.choice == vote.left for vote in votes if vote.choice in ("first", "second")]
    if not decided:
        return None
    share, low, high = wilson(sum(decided), len(decided))
    return {"share": share, "low": low, "high": high, "of": len(decided)}


def _of_rater(votes: list[Vote], gold: dict[int, Any]) -> dict[str, Any]:
    checked = [vote.choice == gold[vote.pair] for vote in votes if vote.pair in gold]
    return {
        "votes": len(votes),
        "seconds": statistics.median(vote.seconds for vote in votes) if votes else None,
        "gold": sum(checked) / len(checked) if checked else None,
        "gold_of": len(checked),
    }


def lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Topics, and what is said of each; nothing of what there is none of."""
    yield (
        "samples",
        f"{report['samples']:,} of {report['prompts']:,} prompts" + _by(report["sources"]),
    )
    if report["models"]:
        yield "models", listed(f"{name} {count:,}" for name, count in report["models"].items())
    yield (
        "pairs",
        f"{report['pairs']:,}{_by(report['pair_sources'])}, {report['voted_pairs']:,} voted on",
    )
    yield "votes", f"{report['votes']:,}{_by(report['choices'])}, {report['undone']:,} undone"
    if report["left"]:
        left = report["left"]
        yield (
            "left",
            f"preferred in {left['share']:.1%} of {left['of']:,} "
            f"(95 % interval {left['low']:.1%} to {left['high']:.1%})",
        )
    for name in ("rankings", "likes", "reasons", "critiques", "edits"):
        if report[name]:
            yield name, f"{report[name]:,}"
    for rater in report["by_rater"]:
        seconds = "" if rater["seconds"] is None else f", median {rater['seconds']:.1f} s"
        gold = "" if rater["gold"] is None else f", {rater['gold']:.0%} of {rater['gold_of']} gold"
        yield "rater", f"{rater['name']} ({rater['kind']}): {rater['votes']:,} votes{seconds}{gold}"


def _by(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{name} {count:,}' for name, count in counts.items())})" * bool(counts)
