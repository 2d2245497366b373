"""`scoretune plan`: what a run will do and cost."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from scoretune.commands.options import Changes, Json, Threads, set_threads
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
    changes: Changes = None,
    processes: Annotated[int, typer.Option(min=1, help="That would share the work.")] = 1,
    threads: Threads = 1,
    json_: Json = False,
) -> None:
    """Count a run's work, memory and time before anything is loaded."""
    from scoretune.commands.plan.plan import planned
    from scoretune.training.run_folder import settings_of

    set_threads(threads)
    run = settings_of(recipe, changes or [])
    forecast = planned(run, processes)
    if json_:
        typer.echo(json.dumps(forecast))
        return
    for title, text in lines_of(forecast):
        typer.echo(f"{title:<12} {text}")


def lines_of(forecast: dict[str, Any]) -> list[tuple[str, str]]:
    """A plan in lines, each with a title."""
    lines = [
        ("model", _model(forecast)),
        ("an update", _update(forecast["update"], forecast["processes"])),
        ("its work", _work(forecast["update"])),
    ]
    calls = forecast["network_evaluations"]
    parts = ("rollouts", "references", "credit", "learning", "warm_up")
    named = ", ".join(f"{name.replace('_', '-')} {_count(calls[name])}" for name in parts)
    lines += [
        ("network", f"{_count(calls['training'])} evaluations in training: {named}"),
        (
            "evaluations",
            f"{forecast['evaluations']} times {forecast['held_out']} held-out prompts: "
            f"{_count(calls['evaluations'])} network evaluations more",
        ),
        ("texts", f"{_count(forecast['text_encodings'])} are encoded"),
        ("a minibatch", _shared(forecast["processes"])),
    ]
    lines += [("unusual", line) for line in forecast["unusual"]]
    if forecast.get("size"):
        said = f"{forecast['size']}, the largest that prompts ask for: what follows is of that"
        lines.append(("size", said))
    lines += _memory(forecast["memory"], forecast.get("frames", {}))
    if "time" in forecast:
        lines.append(("time", _time(forecast["time"])))
    return lines


def _model(forecast: dict[str, Any]) -> str:
    parameters = forecast.get("parameters")
    if parameters is None:
        return str(forecast["model"])
    share = 100 * parameters["trained"] / parameters["total"]
    return (
        f"{forecast['model']}: {parameters['total']:,} weights, of which "
        f"{parameters['trained']:,} are trained ({share:.2g} %)"
    )


def _update(update: dict[str, Any], shared: dict[str, Any]) -> str:
    prompts = shared["prompts_each"] * shared["processes"]
    if not prompts:
        states = _many(update["states"], "state")
        return f"{_many(update['samples'], 'example')} of data: {states}, 1 step of the optimiser"
    return (
        f"{prompts} prompts × {update['samples'] // prompts} = {update['samples']} samples × "
        f"{update['steps']} steps; {update['trained_steps']:g} of them are learned from: "
        f"{_many(update['states'], 'state')}, {_many(update['minibatches'], 'minibatch', 'es')}, "
        f"{_many(update['optimiser_steps'], 'step')} of the optimiser"
    )


def _work(update: dict[str, Any]) -> str:
    calls = sum(update["network_evaluations"].values())
    return (
        f"{_many(calls, 'network evaluation')}, {_count(update['backwards'])} of them followed "
        f"back; {_many(update['decodes'], 'picture')} decoded and rewarded"
    )


def _shared(shared: dict[str, Any]) -> str:
    whole = f"{_many(shared['minibatch'], 'state')} = "
    if shared["processes"] > 1:
        whole += f"{shared['processes']} processes × "
    passes = _many(shared["passes"], "pass", "es")
    return f"{whole}{passes} of {shared['at_once']}; the gradient is the same"


def _memory(memory: dict[str, Any], frames: dict[str, int]) -> list[tuple[str, str]]:
    if "unknown" in memory:
        return [("memory", f"unknown: {memory['unknown']}")]
    worst = memory["phases"][memory["phase"]]
    parts = sorted(worst.items(), key=lambda part: -part[1])
    named = ", ".join(f"{name} {_bytes(size)}" for name, size in parts if size)
    phase = PHASES[memory["phase"]]
    lines = [("memory", f"{_bytes(memory['peak'])} at least, while {phase}: {named}")]
    lines += _decoder(memory, frames, memory["slope_decoder"])
    if memory["elsewhere"]:
        size = _bytes(memory["elsewhere"])
        lines.append(("", f"and {size} of paths and offloaded parts in the computer's memory"))
    lower = ", ".join(f"{name} → {_bytes(size)}" for name, size in memory["knobs"].items())
    lines.append(("to lower it", lower or "nothing that this plan knows of"))
    if "fit" in memory:
        lines += _fit(memory["fit"], frames)
        if not memory["fit"]["fits"]:
            lines += _decoder(memory["fit"], frames, memory["slope_decoder"])
    return lines


def _decoder(
    memory: dict[str, Any], frames: dict[str, int], takes_another: bool
) -> list[tuple[str, str]]:
    """Settings that lower a peak of which over half is the graph through the autoencoder."""
    graph, levers = memory["decoder_graph"], list[str]()
    if frames["shorter"]:
        levers.append(f"model.frames={frames['shorter']} takes about half")
    if takes_another:
        levers.append(
            "model.slope_decoder=FOLDER_OR_HUB_ID of a small autoencoder of the same latents takes "
            "a fraction (docs/models.md)"
        )
    if graph <= memory["peak"] / 2 or not levers:
        return []
    through = f" through {frames['model']} frames" if frames["shorter"] else ""
    whose = f"{_bytes(graph)} of it is the autoencoder's, for the reward's gradient{through}"
    return [("", f"{whose}: {', '.join(levers)}")]


def _fit(fit: dict[str, Any], frames: dict[str, int]) -> list[tuple[str, str]]:
    """Settings with which the run fits a device, and what each of them costs."""
    device, settings = f"{fit['memory'] / 1e9:g} GB", fit["settings"]
    peak = f"{_bytes(fit['peak'])} while {PHASES[fit['phase']]}"
    room = "a tenth is left for what is not counted"
    if not settings and fit["fits"]:
        return [(device, f"fits as it is ({room})")]
    lines = [("", f"{name}: {cost}") for name, cost in settings.items()]
    if not fit["fits"]:
        levers = "model.frames, model.size or" if frames["shorter"] else "model.size or"
        said = (
            f"does not fit: {peak} with all of these, {_bytes(fit['missing'])} too much ({room}); "
            f"lower {levers} model.rank too"
        )
    else:
        said = f"fits with {' '.join(settings)}: {peak} ({room})"
    return [(device, said), *lines]


def _time(time: dict[str, Any]) -> str:
    return (
        f"{duration(time['seconds_at_least'])} at least: "
        f"{time['training_flops'] + time['evaluation_flops']:.2g} FLOPs at the "
        f"{time['flops_per_second']:.2g} a second of large matrix products on this {time['device']}"
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
