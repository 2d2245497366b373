"""The top of the page: what moved, from where to where, at what cost, and whether to believe it."""

from __future__ import annotations

from typing import Any, NamedTuple

from scoretune.evaluate.report.format import THIN, duration, grouped, level, percent, points, shift
from scoretune.evaluate.report.record import EVALUATIONS, Change, Record, change_of, reward_change
from scoretune.evaluate.report.sections import guard

TILES = 3  # beside that of the KL


class Verdict(NamedTuple):
    """The second sentence of the page; `tone` is the class of CSS that colours it."""

    tone: str
    title: str
    text: str


def context(record: Record) -> dict[str, Any]:
    """What `headline.html` shows; without a change it says so."""
    judge, reader = change_of(record, "judge"), change_of(record, "reader")
    reward = reward_change(record, "deterministic")
    seconds, spent = record.last("seconds"), record.last("network_evaluations")
    cost = [duration(seconds, THIN)] if seconds else []
    cost += [f"{grouped(spent)} {EVALUATIONS}"] if spent else []
    change = judge if record.judged else reward
    return {
        "change": change,
        **(_moved(change, record.judged) if change else {}),
        "cost": " and ".join(cost),
        "unfinished": not record.result,
        "verdict": (
            judge_verdict(judge, reader, rewarded=record.rewarded)
            if record.judged
            else reward_verdict(reward)
        ),
        "alarm": guard.alarm(record),
        "tiles": _tiles(record, judge, reader),
    }


def _moved(change: Change, judged: bool) -> dict[str, Any]:
    verb = "rose" if change.gain > 0 else "fell" if change.gain < 0 else "did not move:"
    bounds = [] if change.low is None or change.high is None else [change.low, change.high]
    if not judged:
        return {
            "subject": "Reward under the deterministic sampler",
            "verb": verb,
            "before": level(change.before),
            "after": level(change.after),
            "by": shift(change.gain),
            "bounds": [shift(bound) for bound in bounds],
        }
    digits = _digits(change)
    return {
        "subject": "Judge accuracy on held-out prompts",
        "verb": verb,
        "before": percent(change.before, digits),
        "after": percent(change.after, digits),
        "by": f"{_points(change)} points",
        "bounds": [points(100 * bound, digits).removeprefix("+") for bound in bounds],
    }


def judge_verdict(judge: Change | None, reader: Change | None, *, rewarded: bool) -> Verdict:
    """Whether the judge confirms the gain; a fall or a hack is never left out. `rewarded`: whether
    what was learned from is the reader's reward."""
    if judge is None:
        text = "The judge needs an evaluation after training."
        return Verdict("none", "No comparison yet.", text)
    whose = "The reader, which gives the reward," if rewarded else "The reader"
    theirs = f"{whose} {_gained(reader)}" if reader else ""
    then = f" {theirs}." if reader else ""
    chance = ""
    if judge.may_be_chance:
        chance = f"The 95{THIN}% interval of the judge's change includes zero: it may be chance."
    if judge.gain < 0:
        text = "Pictures follow their prompts less often than before training."
        if reader:
            hacking = rewarded and reader.gain > 0
            hacked = ": that is what reward hacking looks like." if hacking else "."
            text += f" {theirs}{hacked}"
        return Verdict("bad", f"The judge {_gained(judge)}.", f"{text} {chance}".rstrip())
    if rewarded and reader and judge.gain < 0.5 * reader.gain:
        text = f"{theirs}; the judge {_gained(judge)}, less than half of that: much of the reward "
        text += f"was won by pleasing the reader. {chance}"
        return Verdict("bad", "Sign of reward hacking.", text.rstrip())
    if judge.may_be_chance or judge.gain == 0:
        return Verdict("unsure", "Not a clear gain.", (chance or "Nothing moved.") + then)
    if judge.low is None or judge.high is None:
        text = f"The judge {_gained(judge)}, and how much of it is chance was not recorded."
        return Verdict("unsure", "A gain without an interval.", text + then)
    text = f"The judge, which never gives reward, {_gained(judge)}."
    return Verdict("good", "The gain carries over.", text + then)


def reward_verdict(reward: Change | None) -> Verdict:
    """The same for a model without a judge: nothing independent confirms its reward."""
    if reward is None:
        return Verdict("none", "No comparison yet.", "It needs an evaluation after training.")
    caution = "No independent judge looked at these pictures, so a gain may be reward hacking."
    if reward.may_be_chance:
        text = f"The 95{THIN}% interval of the reward's change includes zero: it may be chance."
        return Verdict("unsure", "Not a clear change.", f"{text} {caution}")
    if reward.gain < 0:
        return Verdict("bad", "The reward fell.", caution)
    return Verdict("unsure", "Reward only.", caution)


def _tiles(record: Record, judge: Change | None, reader: Change | None) -> list[dict[str, str]]:
    tiles = [
        _tile(
            f"{name} accuracy",
            f"{_points(change)} points",
            percent(change.after),
            percent(change.before),
        )
        for name, change in (("Judge", judge), ("Reader", reader))
        if change
    ]
    for sampler in ("deterministic", "stochastic"):
        change = reward_change(record, sampler)
        if change and len(tiles) < TILES:
            ends = level(change.after), level(change.before)
            tiles.append(_tile("Reward", f"{sampler} sampler", *ends))
    for name in ("chain", "girsanov"):  # runs of before had the second alone
        kl = record.last(f"{name}_kl")
        if kl is not None:
            note = "nats away from the base model"
            return [*tiles, _tile(f"{name.capitalize()} KL", note, level(kl))]
    return tiles


def _tile(name: str, note: str, after: str, before: str = "") -> dict[str, str]:
    return {"name": name, "note": note, "after": after, "before": before}


def _digits(change: Change) -> int:
    """Of percentages: a small change must not be rounded away."""
    return 0 if abs(change.gain) >= 0.01 else 1


def _points(change: Change) -> str:
    return points(100 * change.gain, _digits(change))


def _gained(change: Change) -> str:
    return f"{'fell by' if change.gain < 0 else 'gained'} {_points(change)[1:]} points"
