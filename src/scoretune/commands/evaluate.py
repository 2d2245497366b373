"""`scoretune evaluate`: a finished run measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scoretune.commands.options import Json, PromptFile, Threads, set_threads
from scoretune.core.errors import UserError

if TYPE_CHECKING:
    from scoretune.core.config import Run


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    prompts: PromptFile = None,
    features: Annotated[
        str | None,
        typer.Option(help="Pictures: compare in these too: reader, inception, my_module:name."),
    ] = None,
    json_: Json = False,
    threads: Threads = 1,
) -> None:
    """Measure a run's newest checkpoint on its held-out prompts or data, or on other prompts."""
    from scoretune.training.run_folder import recorded

    set_threads(threads)
    result = measure_run(recorded(run), run, features, prompts)
    typer.echo(json.dumps(result) if json_ else json.dumps(result, indent=2))


def measure_run(
    run: Run, folder: Path, features: str | None = None, prompts: str | None = None
) -> dict[str, Any]:
    """Scores of a run's newest checkpoint on its held-out prompts, or its held-out data.

    `prompts` is a source of other prompts, all of which are measured.
    """
    from scoretune.core import distributed
    from scoretune.data.prompts import read_prompts
    from scoretune.evaluate.scores import evaluation_line
    from scoretune.models.catalog import remarks
    from scoretune.models.sizes import check_drawable
    from scoretune.rewards.base import check_prompts
    from scoretune.rewards.catalog import named_reward
    from scoretune.training import from_data
    from scoretune.training.build import held_out_prompts
    from scoretune.training.overrides import of_data
    from scoretune.training.run import measured_run
    from scoretune.training.run_folder import load

    if of_data(run):
        if prompts is not None:
            raise UserError("this network knows no prompts: leave out --prompts")
        return from_data.measure(run, folder, features)
    if features is not None:
        raise UserError("--features is for networks that learned from data: leave it out")
    held_out = held_out_prompts(run) if prompts is None else read_prompts(prompts)
    reward, fix = named_reward(run.reward), "give --prompts FILE of such as it reads"
    check_prompts(reward, run.reward, held_out.texts, source="the prompts", fix=fix)
    policy = load(folder, distributed.device())
    check_drawable(policy.backbone, held_out.texts)
    for line in remarks(policy, run.model.guidance, held_out.texts):
        typer.echo(f"note: {line}", err=True)
    measured = measured_run(run, policy, held_out, reward)
    return evaluation_line(
        measured,
        run.evaluation,
        run.sampling,
        update=run.updates,
        seconds=0.0,
        network_evaluations=policy.calls,
    )
