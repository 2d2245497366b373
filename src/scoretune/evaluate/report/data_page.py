"""The page of a run on data: its samples beside the data, the curves, the settings; one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from scoretune.evaluate.report import charts as figures
from scoretune.evaluate.report.charts import Axes, Point, Series
from scoretune.evaluate.report.record import Record, number, read_record

NAMES = {
    "held_out_loss": "held-out loss",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "frechet": "Fréchet distance",
}
ABOUT = {
    "held_out_loss": "The objective on data that were never learned from, with fixed noise.",
    "sliced_wasserstein": "Of samples to held-out data. What known data score, as many of "
    "them, is about the best to hope for.",
    "frechet": "Between the Gaussians that fit samples and held-out data. Of pictures: their "
    "pixels, averaged to 8×8 where they are larger.",
}
STYLE = "main img { max-width: 100%; height: auto; } "
STYLE += ".shots { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); "
STYLE += "gap: 14px; }"


def write(run: Path) -> Path:
    """Write `report.html` into the run folder, from whatever the folder holds; its path."""
    record = read_record(run)
    style = (
        files("scoretune.evaluate.report")
        .joinpath("templates/report.html")
        .read_text(encoding="utf-8")
    )
    style = style.split("<style>")[1].split("</style>")[0]
    about = record.about.get("config")
    config = about if isinstance(about, dict) else {}
    title = f"{record.about.get('recipe', 'a run')} on {config.get('data', 'data')}"
    told = "".join(
        f"<p>{escape(line).replace('-&gt;', '→')}</p>" for line in told_of(record.result)
    )
    missing = "".join(f"<li>{escape(text)}</li>" for text in record.missing)
    rows = "".join(_rows(config))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>scoretune: {escape(title)}</title><style>{style}{STYLE}</style></head>",
        f'<body><main><p class="kicker"><b>scoretune</b>: {escape(_cost(record))}</p>',
        f"<h1>{escape(title)}</h1>{told}",
        f'<div class="missing"><ul>{missing}</ul></div>' if missing else "",
        f"<h2>Samples</h2>{_shots(run / 'previews')}<h2>Curves</h2>{_curves(record)}",
        f"<h2>Settings</h2><p><code>{escape(str(record.about.get('command', '')))}</code></p>",
        f"<details><summary>All of them</summary><table>{rows}</table></details>",
        "</main></body></html>\n",
    ]
    page = run / "report.html"
    page.write_text("\n".join(parts), encoding="utf-8", errors="replace")
    return page


def told_of(result: Mapping[str, Any]) -> list[str]:
    """The result in a line a number: before, after, and what real data score."""
    lines = []
    given = result.get("data")
    for name, found in (given if isinstance(given, dict) else {}).items():
        text = f"{NAMES.get(name, name)}: {found['base']:.4g} -> {found['final']:.4g}"
        if found.get("real") is not None:
            text += f" (data that were learned from: {found['real']:.4g})"
        lines.append(text)
    return lines


def _cost(record: Record) -> str:
    seconds, spent = record.last("seconds"), record.last("network_evaluations")
    told = [] if seconds is None else [f"{seconds:.0f} s"]
    told += [] if spent is None else [f"{figures.grouped(spent)} network evaluations of training"]
    return ", ".join(told) or "unfinished"


def _shots(folder: Path) -> str:
    shown = []
    for name, caption in (
        ("data", "data"),
        ("before", "before training"),
        ("after", "after training"),
        ("newest", "so far"),
    ):
        path = folder / f"{name}.png"
        if not path.exists() or (name == "newest" and (folder / "after.png").exists()):
            continue
        packed = base64.b64encode(path.read_bytes()).decode("ascii")
        image = f'<img alt="{caption}" src="data:image/png;base64,{packed}">'
        shown.append(f'<figure class="panel"><h3>{caption}</h3>{image}</figure>')
    return f'<div class="shots">{"".join(shown)}</div>'


def _curves(record: Record) -> str:
    drawn = [_panel("loss", "loss of training", record.metrics, "The batch's objective.", None)]
    for key, name in NAMES.items():
        real = number(record.result, "data", key, "real")
        drawn.append(_panel(key, name, record.evaluations, ABOUT[key], real))
    return f'<div class="two">{"".join(drawn)}</div>'


def _panel(key: str, name: str, rows: list[dict[str, Any]], note: str, real: float | None) -> str:
    """A chart of what the rows say, with a dashed line at what real data score."""
    points = [
        Point(x, y)
        for row in rows
        if (x := number(row, "update")) is not None and (y := number(row, key)) is not None
    ]
    lines = [Series(name, "plain", figures.thinned(points), dots=len(points) < 40)]
    if real is not None and points:
        level = (Point(points[0].x, real), Point(points[-1].x, real))
        lines.insert(0, Series("data that were learned from", "judge", level, True, dots=False))
    chart = figures.chart(lines, Axes("update", name, from_zero=True))
    if not chart:
        return ""
    text = f'<p class="note">{escape(note)}</p>'
    return f'<figure class="panel"><h3>{escape(name)}</h3>{chart}{text}</figure>'


def _rows(config: Any, path: str = "") -> Iterator[str]:
    for key, value in config.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from _rows(value, where)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"<tr><td><code>{escape(where)}</code></td><td>{escape(text)}</td></tr>"
