"""What a run on data is made of: the data, a new network or one that is trained further."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from scoretune.core import distributed, model_folder
from scoretune.core.config import NEW_NETWORKS, Consistency, Hardware, Matching, Run
from scoretune.core.errors import UserError, user_errors
from scoretune.core.records import Objective, Source
from scoretune.data.datasets import Data, Reading, read_data
from scoretune.diffusion.estimates import prediction_named
from scoretune.diffusion.matching import weightings
from scoretune.diffusion.named import kernel
from scoretune.diffusion.processes import Process, process_named
from scoretune.evaluate.data_samples import DataSampler
from scoretune.models import score_network
from scoretune.models.networks import Design
from scoretune.models.score_network import ScoreNetwork
from scoretune.policy import Policy
from scoretune.training import hardware, hooks, methods, trackers
from scoretune.training.engine import Machine
from scoretune.training.objectives import consistency


@dataclass
class Parts:
    """Everything a run on data is made of."""

    model: ScoreNetwork
    policy: Policy
    known: Data
    held_out: Data
    source: Source
    objective: Objective
    optimiser: torch.optim.Optimizer
    average: hooks.Average
    engine: Machine
    adaptive: consistency.Consistency | None


def check(run: Run) -> None:
    """Refuse settings that do not fit, before anything is read or loaded."""
    model, chosen = run.model, run.objective
    trackers.check(run)
    if distributed.team().size > 1:
        raise UserError("a network of one's own learns in one process: start it without torchrun")
    new = model.source in NEW_NETWORKS
    for name, value, plain, why in (
        ("model.rank", model.rank, 0, "all weights are trained"),
        ("model.revision", model.revision, None, "the network is not from a hub"),
        ("model.precision", model.precision, "fp32", "it is trained whole"),
        ("model.guidance", model.guidance, 1.0, "there are no prompts"),
        ("objective.dropout", getattr(chosen, "dropout", 0.0), 0.0, "there are no prompts"),
        ("hardware", run.hardware, Hardware(), "it is small"),
        ("evaluation.gap.steps", run.evaluation.gap.steps, (), "there is no reward to compare"),
    ):
        if value != plain:
            raise UserError(
                f"{name}={value} does not suit a network of one's own: {why}; leave it out"
            )
    if new:
        with user_errors("model.process"):
            process = process_named(model.process or "VP()")
    else:
        if (model.process, model.prediction, model.width, model.depth) != (None, None, 0, 0):
            raise UserError(
                f"{model.source!r} is trained already and keeps what it is: leave out "
                "model.process, model.prediction, model.width and model.depth"
            )
        process = score_network.load(_home(run)).process
    assert isinstance(chosen, Matching | Consistency)
    if isinstance(chosen, Consistency) and chosen.rule == "distillation" and new:
        raise UserError(
            "there is nothing to distil in a new network: set model.source to the folder of a run "
            "on data, or objective.rule=ict"
        )
    _check_times(process, chosen)


def _check_times(process: Process, chosen: Matching | Consistency) -> None:
    if not chosen.t_min < process.horizon:
        raise UserError(
            f"objective.t_min={chosen.t_min:g} is not below the horizon {process.horizon:g} of "
            f"{process}: lower it"
        )
    if isinstance(chosen, Matching):
        try:
            weightings.TIMES[chosen.times](process, torch.tensor([0.2, 0.8]), chosen.t_min)
        except ValueError as error:
            raise UserError(f"objective.times={chosen.times}: {error}") from error


def build(run: Run) -> Parts:
    """The data, network, source and objective of a configuration."""
    check(run)
    settings = run.dataset.model_dump(exclude={"held_out"})
    data = read_data(run.data, Reading(**settings))
    known, held_out = data.split(run.dataset.held_out, run.seed)
    device = distributed.device()
    model = _model(run, known)
    model.network.to(device).requires_grad_(True)
    policy = Policy(model, kernel(run.sampling))
    x0 = model.embed(known.states.to(device))
    objective, source, adaptive = methods.from_data(run, policy, x0)
    return Parts(
        model=model,
        policy=policy,
        known=known,
        held_out=held_out,
        source=source,
        objective=objective,
        optimiser=hardware.optimiser(run, policy.parameters()),
        average=hooks.Average(model.network, run.optimiser.ema),
        engine=Machine(device),
        adaptive=adaptive,
    )


def _model(run: Run, data: Data) -> ScoreNetwork:
    """A new network for such data, or the one that is trained further."""
    wanted, shape = run.model, tuple(data.states.shape[1:])
    if wanted.source in NEW_NETWORKS:
        design = Design(wanted.source, shape, data.kind, wanted.width, wanted.depth)
        process = process_named(wanted.process or "VP()")
        prediction = prediction_named(wanted.prediction or "v_prediction")
        return ScoreNetwork(design, process, prediction, data.mean, data.std)
    model = score_network.load(_home(run))
    grey = data.kind == "images" and shape[1:] == model.shape[1:] and model.shape[0] == 1
    if data.kind != model.design.content or not (shape == model.shape or grey):
        raise UserError(
            f"{wanted.source!r} draws {model.design.content} of shape {model.shape}, and "
            f"{run.data!r} holds {data.kind} of shape {shape}: give data like those it knows"
        )
    return model


def _home(run: Run) -> Path:
    home = model_folder.home(Path(run.model.source))
    assert home is not None, "only runs with such a folder come here"
    return home


def sampler_of(run: Run) -> DataSampler:
    """How the run's model is measured."""
    chosen, plan = run.evaluation, run.objective
    assert isinstance(plan, Matching | Consistency)
    if isinstance(plan, Consistency):
        return DataSampler(chosen.solver, chosen.steps, plan.t_min, True, plan.sigma_data)
    return DataSampler(chosen.solver, chosen.steps, plan.t_min)
