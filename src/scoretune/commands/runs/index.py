"""Runs below a folder in a list, and some side by side, however little their folders hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scoretune.core.errors import UserError
from scoretune.evaluate.report.format import NOTHING, plain, settings
from scoretune.evaluate.report.record import Record, at, number, read_record

FILES = ("run.json", "metrics.jsonl")  # either of them makes a folder a run
ON_DATA = ("matching", "consistency", "preference")  # kinds of objectives that follow no reward
_STEP = re.compile(r"step-(\d{8})")

Ends = tuple[float | None, float | None]
"""Before and after."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval, where one is recorded."""

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
    reward: Ends
    judge: Ends | None
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
    summaries = [summary(home) for home in homes]
    return sorted(summaries, key=lambda one: (one.started or "", one.run), reverse=True)


def summary(home: Path) -> Summary:
    """A run in a line, from whatever its folder holds; never raises for what is broken in it."""
    return _summary(home, _record(home))


def _summary(home: Path, record: Record) -> Summary:
    config = at(record.about, "config")
    updates = number(config, "updates")
    done = int(record.last("update") or 0)
    measure, reward = _reward(record)
    judge = _judge(record)
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
        return Record(home, {}, [], [], {}, [f"{home}: {error}"])


def _state(home: Path, record: Record, done: int) -> str:
    """finished; ended at k by its guard; stopped at k; damaged, if its settings cannot be read."""
    if not isinstance(record.about.get("config"), dict):
        return "damaged"
    if record.result:
        ended = at(record.result, "guard", "ended")
        return "finished" if ended is None else f"ended by its guard at {ended}"
    broken = any("cannot be read" in line for line in record.missing)
    checkpoints = [p for p in (home / "checkpoints").glob("step-*") if _STEP.fullmatch(p.name)]
    broken |= any(not (p / "manifest.json").is_file() for p in checkpoints)
    return "damaged" if broken else f"stopped at {done}"


def _reward(record: Record) -> tuple[str, Ends]:
    """What is measured before and after: the deterministic reward, or a distance to data."""
    base = number(record.result, "reward_base", "deterministic")
    final = number(record.result, "reward", "deterministic")
    if base is None and final is None:
        base, final = _evaluated(record, "reward", "deterministic")
    distances = at(record.result, "data")
    if base is None and isinstance(distances, dict) and distances:
        name = next(iter(distances))
        return name, (number(distances, name, "base"), number(distances, name, "final"))
    return "reward", (base, final)


def _scored_by(config: Any, measure: str, scored: bool) -> str | None:
    """The reward's name; a run on data has one in its settings, and no use for it."""
    of_data = at(config, "objective", "kind") in ON_DATA and not scored
    return None if of_data or measure != "reward" else _text(at(config, "reward"))


def _judge(record: Record) -> Ends:
    ends = [number(record.result, "judge", end, "overall") for end in ("base", "final")]
    return _evaluated(record, "judge", "overall") if ends == [None, None] else (ends[0], ends[1])


def _evaluated(record: Record, *keys: str) -> Ends:
    """The first and the last evaluation, of a run without a result."""
    values = [v for row in record.evaluations if (v := number(row, *keys)) is not None]
    return (values[0] if values else None), (values[-1] if len(values) > 1 else None)


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
        results = {
            name: [asdict(v) if isinstance(v, Interval) else v for v in row]
            for name, row in self.results.items()
        }
        return {"runs": self.names, "settings": self.settings, "results": results}


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
    results = [_results(record) for record in records]
    return Comparison(
        names=_names(folders),
        settings=_differing([settings(at(record.about, "config")) for record in records]),
        results={
            name: tuple(result.get(name) for result in results)
            for name in dict.fromkeys(name for result in results for name in result)
        },
        records=records,
    )


def _differing(configs: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The settings that are not the same in all runs, a dash where a run has none."""
    kinds = {config.get("objective.kind") for config in configs}
    rows = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        if len(kinds) > 1 and key.startswith("objective.") and key != "objective.kind":
            continue  # objectives of two kinds share no settings
        row = tuple(config.get(key, NOTHING) for config in configs)
        if len(set(row)) > 1:
            rows[key] = row
    return rows


def _results(record: Record) -> dict[str, Interval | str]:
    """What a run came to, by name; only what was measured."""
    run, result = _summary(record.folder, record), record.result
    values: dict[str, Interval | str | None] = {"state": run.state}
    for end, value in zip(("before", "after"), run.reward, strict=True):
        values[f"{run.measure} {end}"] = _exact(value)
    for who in ("judge", "reader"):
        for end, key in (("before", "base"), ("after", "final")):
            values[f"{who} {end}"] = _interval(at(result, who, key), "overall")
    for who in at(result, "gain") or {}:
        values[f"gain of {who}"] = _interval(at(result, "gain", who), "mean")
    values["sampler gap"] = _interval(at(result, "gap", "final"), "mean")
    for name in ("chain KL", "girsanov KL"):
        values[name] = _exact(record.last(name.replace(" KL", "_kl")))
    values["alarms"] = str(run.alarms) if run.alarms else None
    values["network evaluations"] = _exact(record.last("network_evaluations"))
    values["seconds"] = _exact(run.seconds)
    return {name: value for name, value in values.items() if value is not None}


def _interval(row: Any, mean: str) -> Interval | None:
    middle = number(row, mean)
    return None if middle is None else Interval(middle, number(row, "low"), number(row, "high"))


def _exact(value: float | None) -> Interval | None:
    return None if value is None else Interval(value)


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    """The last parts of the paths, as many of them as tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(map(str, folders))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
