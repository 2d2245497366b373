"""What a model card says was measured: before and after, the reward gap, alarms. Nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scoretune.evaluate.report.format import plain
from scoretune.evaluate.report.record import Record, Row, at, number, read_record

Ends = tuple[float | None, float | None, Any]
"""Before, after, and what is known of the change: a mean with `low` and `high`."""


def measured(run_folder: Path) -> str:
    """Markdown on a run's result."""
    record = read_record(run_folder)
    result = record.result
    if not result:
        return "The run has not ended, so there is no result."
    rows = "".join(_row(name, ends) for name, ends in _ends(result))
    lines = [
        "| | before | after | change (95 % interval) |\n|---|---|---|---|\n" + rows.rstrip(),
        f"Before and after on the same prompts and from the same noise{_sampler(record)}. "
        "Intervals are over prompts, of this one run.",
    ]
    if number(result, "path_kl") is not None:
        lines.append(f"Path KL to the base model: {plain(number(result, 'path_kl'))} nats.")
    lines.append(_gap(result))
    if at(result, "guard") is not None:
        lines.append(_alarms(record))
    if at(result, "reward") is not None and at(result, "judge") is None:
        lines.append(
            "No independent judge looked at the pictures, so a gain in reward may be reward "
            "hacking."
        )
    evaluations, seconds = number(result, "network_evaluations"), number(result, "seconds")
    lines.append(f"Cost: {evaluations or 0:.0f} network evaluations, {seconds or 0:.0f} seconds.")
    return "\n\n".join(filter(None, lines))


def _ends(result: Row) -> list[tuple[str, Ends]]:
    found: list[tuple[str, Ends]] = []
    for who in ("judge", "reader"):
        if at(result, who) is not None:
            before, after = (number(result, who, end, "overall") for end in ("base", "final"))
            found.append((f"{who} accuracy", (before, after, at(result, "gain", who))))
    for how in ("deterministic", "stochastic"):
        if at(result, "reward", how) is not None:
            before, after = number(result, "reward_base", how), number(result, "reward", how)
            gain = at(result, "gain", "reward") if how == "deterministic" else None
            found.append((f"reward, {how} sampler", (before, after, gain)))
    for name, row in (at(result, "data") or {}).items():
        found.append((name.replace("_", " "), (number(row, "base"), number(row, "final"), None)))
    return found


def _row(name: str, ends: Ends) -> str:
    before, after, gain = ends
    change = ""
    if number(gain, "mean") is not None:
        low, high = (signed(number(gain, end)) for end in ("low", "high"))
        change = f"{signed(number(gain, 'mean'))} ({low} to {high})"
    elif before is not None and after is not None:
        change = f"{signed(after - before)} (no interval recorded)"
    return f"| {name} | {plain(before)} | {plain(after)} | {change} |\n"


def signed(value: float | None) -> str:
    """A difference for people; 0 has no sign."""
    return plain(value) if value is None or value <= 0 else f"+{plain(value)}"


def _sampler(record: Record) -> str:
    named = [at(row, "sampler") for row in record.evaluations] or [at(record.result, "sampler")]
    return f"; drawn through {named[-1]}, save the stochastic one" if named[-1] else ""


def _gap(result: Row) -> str:
    """What of the reward is the stochastic sampler's, which whoever draws may not use."""
    row = at(result, "gap", "final")
    if number(row, "mean") is None:
        return ""
    low, high = (signed(number(row, end)) for end in ("low", "high"))
    return (
        f"Reward gap: with the noise of training (η {at(row, 'eta')}, {at(row, 'steps')} steps) "
        f"the reward is {signed(number(row, 'mean'))} ({low} to {high}) from that of the ODE, "
        "which begins in the same noise."
    )


def _alarms(record: Record) -> str:
    guard = at(record.result, "guard")
    rung = at(guard, "alarms") or record.alarms
    if at(guard, "action") == "off":
        return "No guard watched over the run."
    if not rung:
        return "The guard against reward hacking rang no alarm."
    lines = [f"- at update {at(row, 'update')}: {at(row, 'text')}" for row in rung]
    if at(guard, "ended") is not None:
        lines.append(f"\nIt ended the run at update {at(guard, 'ended')}.")
    if at(guard, "action") == "rollback" and at(guard, "kept") is not None:
        lines.append(f"The weights are those of update {at(guard, 'kept')}, before the alarm.")
    return "**The guard against reward hacking rang:**\n\n" + "\n".join(lines)
