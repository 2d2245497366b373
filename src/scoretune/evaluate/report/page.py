"""The page that says what a run achieved: `report.html`, one file that loads nothing.

Whatever the run folder lacks is named on the page: a run that was killed still gets its report.
The prose that doesn't depend on the run is in `templates/report.html`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from scoretune.evaluate.report import charts as draw
from scoretune.evaluate.report.charts import THIN, Axes, Point, Series, grouped, percent, signed
from scoretune.evaluate.report.record import (
    EVALUATIONS,
    UPDATE,
    Change,
    Record,
    Row,
    at,
    change_of,
    level,
    number,
    read_record,
    reward_change,
    shift,
)
from scoretune.evaluate.report.sections import gap, guard
from scoretune.evaluate.report.sections.cards import cards as prompt_cards

_OPTIONAL = re.compile(r"<!-- if ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)
_BLANK = re.compile(
    r'<figure class="panel"><h3>[^<]*</h3>\s*<p class="note">No [^<]* was recorded\.</p>'
    r"</figure>\s*"
)
"""A panel that would only say that it has nothing to show."""
_BARE = re.compile(r'<h2>[^<]*</h2>\s*<div class="two">\s*</div>\s*')
"""A section without any panel."""


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder, from whatever the folder holds; return its path."""
    record = read_record(run)
    judge, reader = change_of(record, "judge"), change_of(record, "reader")
    reward = reward_change(record, "deterministic")
    rows = [*record.evaluations, record.result]
    has_judge = any(isinstance(row.get("judge"), dict) for row in rows)
    tone, verdict = judge_verdict(judge, reader) if has_judge else reward_verdict(reward)
    if record.alarms:
        verdict += f" {guard.told(record)}"
    cards, lead = prompt_cards(run / "previews", record.missing)
    slots = {
        "recipe": escape(str(record.about.get("recipe") or "unnamed recipe")),
        "when": escape(_when(record.about.get("started"))),
        "seed": escape(str(record.about.get("seed", "unknown"))),
        "tone": tone,
        "headline": headline(judge if has_judge else reward, has_judge, record),
        "verdict": verdict,
        "tiles": _tiles(record, judge, reader),
        "cards": cards,
        "cards_lead": lead,
        "config": "".join(_config_rows(record.about.get("config"))),
        **_facts(record),
        **_figures(record, has_judge),
        "missing": "".join(f"<li>{escape(text)}</li>" for text in record.missing),
    }
    shown = {name if value else f"no-{name}" for name, value in slots.items()}
    template = (
        files("scoretune.evaluate.report")
        .joinpath("templates/report.html")
        .read_text(encoding="utf-8")
    )
    kept = _OPTIONAL.sub(lambda part: part[2] if part[1] in shown else "", template)
    kept = _BARE.sub("", _BLANK.sub("", kept))
    page = run / "report.html"
    page.write_text(Template(kept).substitute(slots), encoding="utf-8", errors="replace")
    return page


# ------------------------------------------------------------------------------ reading the folder


def headline(change: Change | None, judged: bool, record: Record) -> str:
    """The first sentence of the page: what moved, from where to where, and at what cost."""
    seconds, spent = record.last("seconds"), record.last("network_evaluations")
    cost = [_duration(seconds)] if seconds else []
    cost += [f"{grouped(spent)} {EVALUATIONS}"] if spent else []
    price = " and ".join(cost)
    if change is None:
        return "This run has not recorded a change yet" + (f", after {price}" if price else "")
    verb = "rose" if change.gain > 0 else "fell" if change.gain < 0 else "did not move:"
    digits = 0 if abs(change.gain) >= 0.01 else 1
    bounds = [] if change.low is None or change.high is None else [change.low, change.high]
    if judged:
        subject = "Judge accuracy on held-out prompts"
        start, end = percent(change.before, digits), percent(change.after, digits)
        by = f"{_points(change)} points"
        ends = [_points(Change(0.0, bound), digits).removeprefix("+") for bound in bounds]
    else:
        subject = "Reward under the deterministic sampler"
        start, end, by = level(change.before), level(change.after), shift(change.gain)
        ends = [shift(bound) for bound in bounds]
    by += f", 95{THIN}% interval {' to '.join(ends)}" if ends else ""
    price = (f" in {price}" if price else "") + ("" if record.result else ", so far")
    return f"{subject} <em>{verb} from {start} to {end}</em> <small>({by}){price}</small>"


def judge_verdict(judge: Change | None, reader: Change | None) -> tuple[str, str]:
    """The tone of the headline box and its second sentence; a fall or a hack is never left out."""
    if judge is None:
        return "none", "<b>No comparison yet.</b> The judge needs an evaluation after training."
    theirs = f"The reader, which gives the reward, {_moved(reader)}" if reader else ""
    unclear = judge.may_be_chance
    chance = f" The 95{THIN}% interval of the judge's change includes zero: it may be chance."
    chance = chance if unclear else ""
    if judge.gain < 0:
        text = f"<b>The judge {_moved(judge)}.</b> Pictures follow their prompts less often than "
        text += "before training." + (f" {theirs}" if reader else "")
        if reader:
            text += ": that is what reward hacking looks like." if reader.gain > 0 else "."
        return "bad", text + chance
    if reader and judge.gain < 0.5 * reader.gain:
        text = f"<b>Sign of reward hacking.</b> {theirs}; the judge {_moved(judge)}, less than "
        text += "half of that: much of the reward was won by pleasing the reader."
        return "bad", text + chance
    if unclear or judge.gain == 0:
        text = "<b>Not a clear gain.</b>" + (chance or " Nothing moved.")
        return "unsure", text + (f" {theirs}." if reader else "")
    if judge.low is None or judge.high is None:
        text = f"<b>A gain without an interval.</b> The judge {_moved(judge)}, and how much of it "
        return "unsure", text + "is chance was not recorded." + (f" {theirs}." if reader else "")
    text = f"<b>The gain carries over.</b> The judge, which never gives reward, {_moved(judge)}."
    return "good", text + (f" {theirs}." if reader else "")


def reward_verdict(reward: Change | None) -> tuple[str, str]:
    """The same for a model without a judge: nothing independent confirms its reward."""
    if reward is None:
        return "none", "<b>No comparison yet.</b> It needs an evaluation after training."
    caution = "No independent judge looked at these pictures, so a gain may be reward hacking."
    if reward.may_be_chance:
        change = f"The 95{THIN}% interval of the reward's change includes zero: it may be chance."
        return "unsure", f"<b>Not a clear change.</b> {change} {caution}"
    if reward.gain < 0:
        return "bad", "<b>The reward fell.</b> " + caution
    return "unsure", "<b>Reward only.</b> " + caution


def _tiles(record: Record, judge: Change | None, reader: Change | None) -> str:
    tiles = [
        (f"{name} accuracy", f"{_arrow(percent, change)}<small>{_points(change)} points</small>")
        for name, change in (("Judge", judge), ("Reader", reader))
        if change
    ]
    for sampler in ("deterministic", "stochastic"):
        change = reward_change(record, sampler)
        if change and len(tiles) < 3:
            tiles.append(("Reward", f"{_arrow(level, change)}<small>{sampler} sampler</small>"))
    path_kl = record.last("path_kl")
    if path_kl is not None:
        about = "nats away from the base model"
        tiles.append(("Path KL", f"{level(path_kl)}<small>{about}</small>"))
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles)


def _facts(record: Record) -> dict[str, str]:
    """What was run, escaped, and how to run it again."""
    about = record.about
    given = about.get("versions")
    versions = ", ".join(f"{k} {v}" for k, v in given.items()) if isinstance(given, dict) else ""
    seconds, spent = record.last("seconds"), record.last("network_evaluations")
    facts = {
        "Command": f"<code>{escape(str(about['command']))}</code>" if "command" in about else "",
        "Seed": escape(str(about.get("seed", ""))),
        "Threads": escape(str(about.get("threads", ""))),
        "Started": escape(_when(about.get("started"))),
        "Time": _duration(seconds) if seconds else "",
        "Cost": f"{grouped(spent)} {EVALUATIONS}" if spent else "",
        "Machine": escape(str(about.get("machine", ""))),
        "Versions": escape(versions),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items() if value)
    command = escape(str(about.get("command", "")))
    return {"facts": rows, "command": command, "versions": escape(versions)}


def _config_rows(config: Any, path: str = "") -> Iterator[str]:
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from _config_rows(value, f"{path}.{key}" if path else str(key))
    elif path:
        value = config if isinstance(config, str) else json.dumps(config)
        yield f"<tr><td><code>{escape(path)}</code></td><td><code>{escape(value)}</code></td></tr>"


def _arrow(say: Any, change: Change) -> str:
    return f"<i>{say(change.before)} \u2192</i> {say(change.after)}"


def _points(change: Change, digits: int | None = None) -> str:
    if digits is None:
        digits = 0 if abs(change.gain) >= 0.01 else 1
    return signed(100 * change.gain, digits)


def _moved(change: Change) -> str:
    return f"{'fell by' if change.gain < 0 else 'gained'} {_points(change)[1:]} points"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f}{THIN}s"
    return f"{seconds / 60:.0f}{THIN}min" if seconds < 7200 else f"{seconds / 3600:.1f}{THIN}h"


def _when(started: Any) -> str:
    try:
        moment = datetime.fromisoformat(str(started))
    except ValueError:
        return str(started or "")
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".rstrip()


# ----------------------------------------------------------------------------- choosing the figures


def _figures(record: Record, has_judge: bool) -> dict[str, str]:
    """Every figure by its slot in the template; an empty string for one that lacks its data."""
    rewards = _series("training reward", "faint", record.metrics, "network_evaluations", "reward")
    accuracies = [
        _accuracy(record, "reader", dashed=True),
        _accuracy(record, "judge", dashed=False),
    ]
    fits = all(0 <= p.y <= 1 for p in rewards.points)  # else it cannot share the axis
    if any(line.points for line in accuracies):
        axes = Axes(EVALUATIONS, "share of pictures as asked", percent=True, least_span=0.3)
        progress = draw.chart([*([rewards] if fits else []), *accuracies], axes)
    else:
        axes = Axes(EVALUATIONS, "mean training reward", least_span=0.05)
        progress = draw.chart([replace(rewards, style="plain")], axes)
    path_kl = _series("path KL", "plain", record.metrics, "update", "path_kl")
    if not path_kl.points:  # an objective that does not measure it while training
        path_kl = _series("path KL", "plain", record.evaluations, "update", "path_kl")
        path_kl = replace(path_kl, dots=True)
    critic = _series("explained variance", "plain", record.metrics, "update", "explained_variance")
    return {
        "judged_progress": progress if has_judge else "",
        "reward_progress": "" if has_judge else progress,
        "parts": _parts(record),
        "tasks": _tasks(record, "judge") + _tasks(record, "reader"),
        **gap.slots(record),
        **guard.slots(record),
        "path_kl": draw.chart([path_kl], Axes(UPDATE, "path KL, nats", from_zero=True)),
        "critic": draw.chart(
            [critic], Axes(UPDATE, "explained variance, fraction", floor=-1.0, from_zero=True)
        ),
    }


def _series(name: str, style: str, rows: list[Row], x: str, y: str) -> Series:
    """A line of a log, with the band that `<y>_low` and `<y>_high` give it."""
    points = [
        Point(at, value, number(row, f"{y}_low"), number(row, f"{y}_high"))
        for row in rows
        if (at := number(row, x)) is not None and (value := number(row, y)) is not None
    ]
    return Series(name, style, draw.thinned(points), dots=False)


def _evaluated(record: Record, *keys: str) -> tuple[Point, ...]:
    """The numbers at `keys` of every evaluation, with `low` and `high` beside them."""
    return tuple(
        Point(at, value, number(row, *keys[:-1], "low"), number(row, *keys[:-1], "high"))
        for row in record.evaluations
        if (at := number(row, "network_evaluations")) is not None
        and (value := number(row, *keys)) is not None
    )


def _accuracy(record: Record, who: str, dashed: bool) -> Series:
    return Series(f"{who} accuracy", who, _evaluated(record, who, "overall"), dashed=dashed)


def _tasks(record: Record, who: str) -> str:
    found = [at(row, who, "tasks") for row in record.evaluations]
    found.append(at(record.result, who, "final", "tasks"))
    names = dict.fromkeys(name for tasks in found if isinstance(tasks, dict) for name in tasks)
    changes = {name: change_of(record, who, "tasks", name) for name in names}
    bars = [(name, change.before, change.after) for name, change in changes.items() if change]
    if not bars:
        return ""
    drawn = draw.bars(bars, who, f"{who} accuracy, % of pictures")
    return f'<figure class="panel"><h3>In the eyes of the {who}</h3>{drawn}</figure>'


def _parts(record: Record) -> str:
    """A panel for each reward of a sum, of what it adds to the training reward."""
    keys = dict.fromkeys(k for row in record.metrics for k in row if k.startswith("reward/"))
    panels = []
    for key in keys if len(keys) > 1 else ():
        name = key.removeprefix("reward/")
        line = _series(name, "plain", record.metrics, "network_evaluations", key)
        drawn = draw.chart([line], Axes(EVALUATIONS, "mean, times its weight", least_span=0.05))
        panels.append(f'<figure class="panel"><h3>{escape(name)}</h3>{drawn}</figure>')
    return "".join(panels)
