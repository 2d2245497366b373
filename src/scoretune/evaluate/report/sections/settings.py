"""What was run: the command, seed, versions and machine, and the full configuration."""

from __future__ import annotations

from typing import Any

from scoretune.evaluate.report.format import THIN, duration, grouped, moment, settings
from scoretune.evaluate.report.record import EVALUATIONS, Record


def context(record: Record) -> dict[str, Any]:
    """Facts by their name, and the configuration's leaves by their path."""
    about = record.about
    versions = about.get("versions")
    libraries = versions.items() if isinstance(versions, dict) else ()
    seconds, spent = record.last("seconds"), record.last("network_evaluations")
    facts = {
        "Command": str(about.get("command", "")),
        "Seed": str(about.get("seed", "")),
        "Threads": str(about.get("threads", "")),
        "Started": moment(about.get("started")),
        "Time": duration(seconds, THIN) if seconds else "",
        "Cost": f"{grouped(spent)} {EVALUATIONS}" if spent else "",
        "Machine": str(about.get("machine", "")),
        "Versions": ", ".join(f"{name} {version}" for name, version in libraries),
    }
    return {
        "facts": {name: value for name, value in facts.items() if value},
        "config": settings(about.get("config")),
    }
