"""Equal work for unequal settings: as many updates as a budget of network evaluations pays for."""

from __future__ import annotations

from scoretune.commands.plan.plan import calls_of_training
from scoretune.core.config import Run
from scoretune.core.errors import UserError


def words_within(run: Run, evaluations: int) -> list[str]:
    """`updates=` and `evaluation.every=` with which a run trains with at most so many network
    evaluations, its critic's warm-up among them, and is evaluated as often as before.

    Raises UserError where they do not pay for one update.
    """
    calls, first = calls_of_training(run)
    each = calls / run.updates
    updates = int((evaluations - first) / each)
    if updates < 1:
        raise UserError(
            f"--evaluations {evaluations} do not pay for one update, which asks the network "
            f"{first + each:,.0f} times: raise it"
        )
    every = run.evaluation.every
    kept = max(1, round(updates * every / run.updates)) if every else 0
    return [f"updates={updates}", f"evaluation.every={kept}"]
