"""What a report is about: everything that could be read of a run folder, and what could not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
EVALUATIONS, UPDATE = "network evaluations", "update"  # what the horizontal axes are called


@dataclass(frozen=True)
class Record:
    """What could be read of a run folder and, in words, what could not."""

    folder: Path
    about: Row
    metrics: list[Row]
    evaluations: list[Row]
    result: Row
    missing: list[str]
    """In words; a section that reads more of the folder adds what it lacks."""
    gaps: list[Row] = field(default_factory=list)
    """Matrices of the reward gap, which few runs have."""
    alarms: list[Row] = field(default_factory=list)
    """Of the guard, the first ones first."""

    def last(self, key: str) -> float | None:
        """The newest value of `key`: of the result, else of the last line that has it."""
        rows = [*self.evaluations, *self.metrics]
        values = [value for row in rows if (value := number(row, key)) is not None]
        final = number(self.result, key)
        return final if final is not None else values[-1] if values else None

    @property
    def judged(self) -> bool:
        """Whether a judge looked at the pictures."""
        return any(isinstance(row.get("judge"), dict) for row in (*self.evaluations, self.result))

    @property
    def rewarded(self) -> bool:
        """Whether updates had a reward; of a run without updates it is taken for granted."""
        return not self.metrics or any("reward" in row for row in self.metrics)


@dataclass(frozen=True)
class Change:
    """A quantity before and after; `low` and `high` bound the gain where they are recorded."""

    before: float
    after: float
    low: float | None = None
    high: float | None = None

    @property
    def gain(self) -> float:
        return self.after - self.before

    @property
    def may_be_chance(self) -> bool:
        """Whether the gain's interval is recorded and contains 0."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


def read_record(run: Path) -> Record:
    """Read a run folder, however little of it there is."""
    missing: list[str] = []
    about = _object(run / "run.json", missing)
    metrics, evaluations = (
        _lines(run / name, missing) for name in ("metrics.jsonl", "evaluations.jsonl")
    )
    if len(evaluations) == 1:
        missing.append("There is only one evaluation, so nothing can be compared.")
    result = _object(run / "result.json", missing)
    if not result:
        missing.append("Without a result the run is unfinished: the page shows its latest numbers.")
    matrices = run / "gap.jsonl"
    gaps = _lines(matrices, missing) if matrices.exists() else []
    log = run / "alarms.jsonl"
    alarms = _lines(log, missing) if log.exists() else []
    return Record(run, about, metrics, evaluations, result, missing, gaps, alarms)


def number(row: Any, *keys: str) -> float | None:
    """The finite number at `row[keys[0]][keys[1]]…`, or None."""
    value = at(row, *keys)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def at(row: Any, *keys: str) -> Any:
    """Whatever is at `row[keys[0]][keys[1]]…`, or None."""
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _object(path: Path, missing: list[str]) -> Row:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError):
        missing.append(f"{path.name} cannot be read.")
        return {}
    return _renamed(value) if isinstance(value, dict) else {}


def _renamed(row: Row) -> Row:
    """A row of an older run, in which the KL of continuous time had another name."""
    return {"girsanov_kl" if name == "path_kl" else name: value for name, value in row.items()}


def _lines(path: Path, missing: list[str]) -> list[Row]:
    """The rows of a JSONL file, one an update (of alarms one a watch): a resumed run may have
    written an update twice."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        missing.append(f"{path.name} is missing.")
        return []
    rows: dict[tuple[float, str], Row] = {}
    broken = 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
            rows[float(row["update"]), str(row.get("watch", ""))] = _renamed(dict(row))
        except (ValueError, TypeError, KeyError):
            broken += 1  # the line that was being written when the run was killed
    if broken:
        missing.append(f"{path.name}: unreadable lines left out: {broken}.")
    return [rows[place] for place in sorted(rows)]


def change_of(record: Record, who: str, *what: str) -> Change | None:
    """Base against final accuracy of the reader or judge, by default over all tasks."""
    what = what or ("overall",)
    values = [value for row in record.evaluations if (value := number(row, who, *what)) is not None]
    before = number(record.result, who, "base", *what)
    after = number(record.result, who, "final", *what)
    if before is not None and after is not None:
        bounds = (number(record.result, "gain", who, end) for end in ("low", "high"))
        return Change(before, after, *bounds) if what == ("overall",) else Change(before, after)
    return Change(values[0], values[-1]) if len(values) > 1 else None


def reward_change(record: Record, sampler: str) -> Change | None:
    """The reward under a sampler; its gain has bounds where the result has them."""
    rows = [*record.evaluations, record.result]
    values = [value for row in rows if (value := number(row, "reward", sampler)) is not None]
    if len(values) < 2:
        return None
    if sampler != "deterministic" or number(record.result, "reward", sampler) is None:
        return Change(values[0], values[-1])
    bounds = (number(record.result, "gain", "reward", end) for end in ("low", "high"))
    return Change(values[0], values[-1], *bounds)
