"""Which settings fit published models on cards of 24, 48 and 80 GB, by `scoretune plan`: a table.

    .venv/bin/python benchmarks/memory_table.py [MODEL …] [a.b=c …]

From configurations alone (`published_models.py`): nothing was run on such a card.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from published_models import MODELS, build
from scoretune.commands.plan.counts import Facts
from scoretune.commands.plan.fitting import as_numbers, fitted, work_of
from scoretune.commands.plan.memory import peak, phases
from scoretune.commands.plan.model import calls_a_state, model_of
from scoretune.core.config import Run
from scoretune.policy import deployment_of
from scoretune.training import overrides, settings_file

CARDS = (24, 48, 80)
HELD_OUT = 16


def row(name: str, home: Path, changes: list[str]) -> list[str]:
    """The lines of a model: as its family and the changes have it, and on each card."""
    prompts = home / "prompts.txt"
    prompts.write_text("a red circle\n" * HELD_OUT)
    source, settings = build(name, home), [f"prompts={prompts}", "reward=brightness"]
    run: Run = settings_file.named("ddpo", [f"model.source={source}", *settings, *changes])
    policy, model = model_of(run, ["a red circle"])
    backbone = policy.backbone
    facts = Facts(backbone.process, calls_a_state(policy), True, False, deployment_of(backbone))
    worst, most = peak(phases(run, model, facts, HELD_OUT))
    lines = [f"| {name} | as it is | – | {most / 1e9:.1f} GB, {worst} | 1 |"]
    for card in CARDS:
        other = overrides.changed(run, [f"hardware.memory={card}GB"])
        fit = fitted(other, model, facts, HELD_OUT)
        numbers = as_numbers(fit, facts, HELD_OUT)
        work = work_of(fit.run, fit.model, facts) / work_of(run, model, facts)
        said = " ".join(f"`{one}`" for one in fit.settings) or "none"
        if not fit.fits:
            said = f"does not fit, {numbers['missing'] / 1e9:.1f} GB too much, with {said}"
        held = f"{numbers['peak'] / 1e9:.1f} GB, {numbers['phase']}"
        lines.append(f"| {name} | {card} GB | {said} | {held} | {work:.2f} |")
    return lines


if __name__ == "__main__":
    print("| model | card | settings beside the family's | peak, and the phase | work |")
    print("|---|---|---|---|---|", flush=True)
    named = [word for word in sys.argv[1:] if "=" not in word]
    changed = [word for word in sys.argv[1:] if "=" in word]
    for each in named or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join(row(each, Path(folder), changed)), flush=True)
