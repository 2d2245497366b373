"""A profile as lines of text, and as a page with a flame view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scoretune.commands.profile.frames import Frame
from scoretune.commands.profile.measure import Profile
from scoretune.core.config import Run
from scoretune.core.files import write_json
from scoretune.evaluate.report import render
from scoretune.training import overrides

WIDTH, ROW = 1100.0, 19.0
THIN = 0.002
"""Frames of a smaller share of the update are not drawn."""
DEEP = 16
"""Rows of the flame view: below these are torch's own steps."""
SPOKEN = {
    "network": "network",
    "decode": "decoder",
    "reward": "reward",
    "credit": "credit",
    "rollout": "sampler's steps",
    "prompts": "prompts",
    "data": "data",
    "learning": "learning",
    "update": "the rest",
}


class Box(NamedTuple):
    """A rectangle of the flame view."""

    x: float
    y: float
    width: float
    part: str
    label: str
    tip: str


def lines(profile: Profile) -> Iterator[str]:
    """The table of parts, the largest first, and what the update took as a whole."""
    yield f"{'':<16}{'share':>7}{'backward':>10}{'CPU s':>8}{'times':>7}{'waits':>7}"
    for row in _rows(profile):
        yield (
            f"{row['name']:<16}{row['share']:>6.1%} {row['backward']:>9.1%}{row['cpu']:>8.2f}"
            f"{row['entered']:>7}{row['waits']:>7}"
        )
    record = profile.record
    yield (
        f"an update: {profile.cpu_seconds:.2f} CPU s ({profile.cpu_seconds_profiled:.2f} under the "
        f"profiler), {record.peak / 2**20:.1f} MiB more at its peak, in: "
        f"{SPOKEN[record.peak_part]}"
    )


def write(profile: Profile, run: Run, folder: Path) -> Path:
    """Write `profile.html`, and `profile.json` with the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "profile.json", profile.as_dict())
    boxes = list(_boxes(profile.record.root, profile.seconds))
    values = {
        "title": f"profile of {run.recipe}",
        "recipe": run.recipe,
        "changes": overrides.unusual(run),
        "device": profile.device,
        "rows": _rows(profile),
        "cpu": f"{profile.cpu_seconds:.2f}",
        "profiled": f"{profile.cpu_seconds_profiled:.2f}",
        "peak": f"{profile.record.peak / 2**20:.1f}",
        "peak_part": SPOKEN[profile.record.peak_part],
        "waits": sum(spent.synchronisations for spent in profile.record.parts.values()),
        "on_device": any(spent.device for spent in profile.record.parts.values()),
        "boxes": boxes,
        "width": WIDTH,
        "height": max(box.y for box in boxes) + ROW,
        "row": ROW - 1,
    }
    text = render.text("profile.html", values, "scoretune.commands.profile")
    return render.write(folder / "profile.html", text)


def _rows(profile: Profile) -> list[dict[str, Any]]:
    whole = profile.seconds
    spent = sorted(profile.record.parts.items(), key=lambda item: -item[1].seconds)
    return [
        {
            "part": name,
            "name": SPOKEN[name],
            "share": part.seconds / whole,
            "backward": part.backward / whole,
            "cpu": part.seconds / whole * profile.cpu_seconds,
            "device": f"{part.device:.3f}",
            "entered": part.entered,
            "waits": part.synchronisations,
        }
        for name, part in spent
        if part.seconds
    ]


def _boxes(frame: Frame, whole: float, x: float = 0.0, depth: int = 0) -> Iterator[Box]:
    """A frame and what it called below it, as wide as their time; the longest on the left."""
    width = frame.seconds / whole * WIDTH
    name = frame.name.removeprefix("aten::")
    tip = f"{name}: {frame.seconds:.3f} s, {frame.seconds / whole:.1%}, {frame.calls} times"
    if frame.part not in (name, "update"):
        tip += f" ({SPOKEN[frame.part]})"
    label = name[: int(width / 6.6)] if width > 24 else ""
    yield Box(round(x, 2), depth * ROW, round(width, 2), frame.part, label, tip)
    if depth + 1 >= DEEP:
        return
    for child in sorted(frame.children.values(), key=lambda child: -child.seconds):
        if child.seconds / whole >= THIN:
            yield from _boxes(child, whole, x, depth + 1)
            x += child.seconds / whole * WIDTH
