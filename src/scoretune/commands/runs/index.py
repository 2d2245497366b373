"""What became of runs: all below a folder in a list, and some of them side by side.

Takes nothing of a run folder for granted: killed and broken runs have their place in the list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scoretune.core.errors import UserError
from scoretune.evaluate.report.record import NOTHING, Record, at, number, plain, read_record

FILES = ("run.json", "metrics.jsonl")  # either of them makes a folder a run
_STEP = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval, where one is known."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        bounds = "" if self.low is None else f" ({plain(self.low)} to {plain(self.high)})"
        return plain(self.mean) + bounds


@dataclass(frozen=True)
class Summary:
    """One run in a line; None for what its folder does not say.

    `reward` and `judge` are before and after, through the deterministic sampler. A run on data has
    its distance to the data (`measure`) in the place of a reward. `seconds` are of work.
    """

    run: str
    recipe: str | None
    model: str | None
    state: str
    done: int
    updates: int | None
    reward_name: str | None
    measure: str
    reward: tuple[float | None, float | None]
    judge: tuple[float | None, float | None] | None
    alarms: int
    seconds: float | None
    started: str | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def listed(folder: Path) -> list[Summary]:
    """Every run at or below a folder, the newest first. Raises UserError where that is none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {str(folder)!r}: give one that holds runs")
    homes = {path.parent for name in FILES for path in folder.rglob(name)}
    found = [summary(home) for home in homes]
    return sorted(found, key=lambda one: (one.started or "", one.run), reverse=True)


def summary(home: Path) -> Summary:
    """A run in a line, from whatever its folder holds; never raises for what is broken in it."""
    record = _record(home)
    config = at(record.about, "config")
    updates = number(config, "updates")
    done = int(record.last("update") or 0)
    measure, reward = _reward(record)
    judge = _ends(record, "judge", "overall")
    return Summary(
        run=str(home),
        recipe=_text(record.about.get("recipe")),
        model=_text(at(config, "model", "source")),
        state=_state(home, record, done),
        done=done,
        updates=None if updates is None else int(updates),
        reward_name=_scored_by(config, measure, reward != (None, None)),
        measure=measure,
        reward=reward,
        judge=None if judge == (None, None) else judge,
        alarms=len(record.alarms),
        seconds=record.last("seconds"),
        started=_text(record.about.get("started")),
    )


def _record(home: Path) -> Record:
    try:
        return read_record(home)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return Record({}, [], [], {}, [f"{home}: {error}"])


def _state(home: Path, record: Record, done: int) -> str:
    """finished; ended at k by its guard; stopped at k; damaged, if its settings cannot be read."""
    if not isinstance(record.about.get("config"), dict):
        return "damaged"
    if record.result:
        ended = at(record.result, "guard", "ended")
        return "finished" if ended is None else f"ended by its guard at {ended}"
    broken = any("cannot be read" in told for told in record.missing)
    checkpoints = [p for p in (home / "checkpoints").glob("step-*") if _STEP.fullmatch(p.name)]
    broken |= any(not (p / "manifest.json").is_file() for p in checkpoints)
    return "damaged" if broken else f"stopped at {done}"


def _reward(record: Record) -> tuple[str, tuple[float | None, float | None]]:
    """What is measured before and after: the deterministic reward, or a distance to data."""
    base = number(record.result, "reward_base", "deterministic")
    final = number(record.result, "reward", "deterministic")
    if base is None and final is None:
        known = [number(row, "reward", "deterministic") for row in record.evaluations]
        base, final = (known[0], known[-1] if len(known) > 1 else None) if known else (None, None)
    distances = at(record.result, "data")
    if base is None and isinstance(distances, dict) and distances:
        name = next(iter(distances))
        return name, (number(distances, name, "base"), number(distances, name, "final"))
    return "reward", (base, final)


def _scored_by(config: Any, measure: str, known: bool) -> str | None:
    """The reward's name; a run on data has one in its settings, and no use for it."""
    of_data = at(config, "objective", "kind") in ("matching", "consistency") and not known
    return None if of_data or measure != "reward" else _text(at(config, "reward"))


def _ends(record: Record, *keys: str) -> tuple[float | None, float | None]:
    who, *what = keys
    base, final = (number(record.result, who, end, *what) for end in ("base", "final"))
    if base is None and final is None:
        known = [v for row in record.evaluations if (v := number(row, *keys)) is not None]
        return (known[0], known[-1] if len(known) > 1 else None) if known else (None, None)
    return base, final


# ------------------------------------------------------------------------------ side by side


@dataclass(frozen=True)
class Comparison:
    """Runs side by side: rows of settings that differ and of results, one entry a run."""

    names: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    results: dict[str, tuple[Interval | str | None, ...]]
    records: tuple[Record, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without the records."""
        told = {
            name: [asdict(v) if isinstance(v, Interval) else v for v in row]
            for name, row in self.results.items()
        }
        return {"runs": self.names, "settings": self.settings, "results": told}


def compare(folders: Sequence[Path]) -> Comparison:
    """Settings that differ, and results. Raises UserError for fewer than two, or no run folder."""
    if len(folders) < 2:
        raise UserError("name two runs or more: scoretune runs compare RUN RUN")
    for folder in folders:
        if not any((folder / name).is_file() for name in FILES):
            raise UserError(
                f"{str(folder)!r} is no run folder: scoretune runs lists those that there are"
            )
    records = tuple(_record(folder) for folder in folders)
    trees = [dict(_flat(at(record.about, "config") or {})) for record in records]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    if len({tree.get("objective.kind") for tree in trees}) > 1:  # then they share no settings
        keys = [k for k in keys if not k.startswith("objective.") or k == "objective.kind"]
    rows = {key: tuple(tree.get(key, NOTHING) for tree in trees) for key in keys}
    results = [_results(folder, record) for folder, record in zip(folders, records, strict=True)]
    measured = dict.fromkeys(key for result in results for key in result)
    return Comparison(
        names=_names(folders),
        settings={key: row for key, row in rows.items() if len(set(row)) > 1},
        results={key: tuple(result.get(key) for result in results) for key in measured},
        records=records,
    )


def _results(folder: Path, record: Record) -> dict[str, Interval | str]:
    """What a run came to, by name; only what was measured."""
    told, result = summary(folder), record.result
    found: dict[str, Interval | str | None] = {"state": told.state}
    for end, value in zip(("before", "after"), told.reward, strict=True):
        found[f"{told.measure} {end}"] = _maybe(value)
    for who in ("judge", "reader"):
        for end, key in (("before", "base"), ("after", "final")):
            found[f"{who} {end}"] = _interval(at(result, who, key), "overall")
    for who in at(result, "gain") or {}:
        found[f"gain of {who}"] = _interval(at(result, "gain", who), "mean")
    found["sampler gap"] = _interval(at(result, "gap", "final"), "mean")
    found["path KL"] = _maybe(record.last("path_kl"))
    found["alarms"] = str(told.alarms) if told.alarms else None
    found["network evaluations"] = _maybe(record.last("network_evaluations"))
    found["seconds"] = _maybe(told.seconds)
    return {name: value for name, value in found.items() if value is not None}


def _interval(row: Any, mean: str) -> Interval | None:
    middle = number(row, mean)
    return None if middle is None else Interval(middle, number(row, "low"), number(row, "high"))


def _maybe(value: float | None) -> Interval | None:
    return None if value is None else Interval(value)


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, tree if isinstance(tree, str) else json.dumps(tree)


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The last parts of the paths, as many of them as tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(map(str, folders))


def shortened(name: str, most: int = 24) -> str:
    """A name of at most `most` characters; an ellipsis stands for what was cut off its end."""
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
