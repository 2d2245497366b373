"""`scoretune plan`: what a run will do and cost."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from scoretune.evaluate.report.format import duration

PHASES = {
    "encoding": "the prompts are encoded",
    "rolling": "samples are drawn",
    "drawing": "samples are decoded to pictures",
    "crediting": "the gradient of the reward is taken",
    "dealing": "the steps to learn from are gathered",
    "learning": "the gradient of a minibatch is taken",
    "stepping": "the optimiser changes the weights",
    "evaluating": "an evaluation draws its pictures",
}
"""What a run does in each phase, in plain words."""


def plan(
    recipe: Annotated[str, typer.Argument(help="A method, e.g. grpo, or a run folder.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, as a.b=c.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="That would share the work.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object last.")] = False,
) -> None:
    """Count a run's work, memory and time before anything is loaded."""
    import torch

    from scoretune.commands.plan.plan import chosen, planned

    torch.set_num_threads(threads)
    run = chosen(recipe, changes or [])
    found = planned(run, processes)
    if json_:
        typer.echo(json.dumps(found))
        return
    for title, text in told(found):
        typer.echo(f"{title:<12} {text}")


def told(found: dict[str, Any]) -> list[tuple[str, str]]:
    """A plan in lines, each with a title."""
    lines = [("model", _model(found)), ("an update", _update(found["update"], found["processes"]))]
    calls = found["network_evaluations"]
    parts = ("rollouts", "references", "credit", "learning", "warm_up")
    named = ", ".join(f"{name.replace('_', '-')} {_count(calls[name])}" for name in parts)
    lines += [
        ("network", f"{_count(calls['training'])} evaluations in training: {named}"),
        (
            "evaluations",
            f"{found['evaluations']} times {found['held_out']} held-out prompts: "
            f"{_count(calls['evaluations'])} network evaluations more",
        ),
        ("texts", f"{_count(found['text_encodings'])} are encoded"),
        ("a minibatch", _shared(found["processes"])),
    ]
    lines += _memory(found["memory"])
    if "time" in found:
        lines.append(("time", _time(found["time"])))
    return lines


def _model(found: dict[str, Any]) -> str:
    known = found.get("parameters")
    if known is None:
        return str(found["model"])
    share = 100 * known["trained"] / known["total"]
    return (
        f"{found['model']}: {known['total']:,} weights, of which {known['trained']:,} are trained "
        f"({share:.2g} %)"
    )


def _update(update: dict[str, Any], shared: dict[str, Any]) -> str:
    prompts = shared["prompts_each"] * shared["processes"]
    return (
        f"{prompts} prompts × {update['samples'] // prompts} = {update['samples']} samples × "
        f"{update['steps']} steps; {update['trained_steps']:g} of them are learned from: "
        f"{_many(update['states'], 'state')}, {_many(update['minibatches'], 'minibatch', 'es')}, "
        f"{_many(update['optimiser_steps'], 'step')} of the optimiser"
    )


def _shared(shared: dict[str, Any]) -> str:
    whole = f"{_many(shared['minibatch'], 'state')} = "
    if shared["processes"] > 1:
        whole += f"{shared['processes']} processes × "
    passes = _many(shared["passes"], "pass", "es")
    return f"{whole}{passes} of {shared['at_once']}; the gradient is the same"


def _memory(memory: dict[str, Any]) -> list[tuple[str, str]]:
    if "unknown" in memory:
        return [("memory", f"unknown: {memory['unknown']}")]
    worst = memory["phases"][memory["phase"]]
    parts = sorted(worst.items(), key=lambda part: -part[1])
    named = ", ".join(f"{name} {_bytes(size)}" for name, size in parts if size)
    phase = PHASES[memory["phase"]]
    lines = [("memory", f"{_bytes(memory['peak'])} at least, while {phase}: {named}")]
    if memory["elsewhere"]:
        lines.append(("", f"and {_bytes(memory['elsewhere'])} of paths in the computer's memory"))
    lower = ", ".join(f"{name} → {_bytes(size)}" for name, size in memory["knobs"].items())
    return [*lines, ("to lower it", lower or "nothing that this plan knows of")]


def _time(told: dict[str, Any]) -> str:
    return (
        f"{duration(told['seconds_at_least'])} at least: "
        f"{told['training_flops'] + told['evaluation_flops']:.2g} FLOPs at the "
        f"{told['flops_per_second']:.2g} a second of large matrix products on this {told['device']}"
    )


def _count(number: float) -> str:
    return f"{round(number):,}" if float(number).is_integer() else f"about {round(number):,}"


def _many(number: float, name: str, ending: str = "s") -> str:
    return f"{_count(number)} {name}{'' if number == 1 else ending}"


def _bytes(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size / 2**10:.3g} KiB"
