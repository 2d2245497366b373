"""Training a network of one's own on data: what such a run is made of, and how it is measured on
the share of the data that is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import checkpoints, distributed, model_folder, reading
from scoretune.core.config import NEW_NETWORKS, Consistency, Evaluation, Hardware, Matching, Run
from scoretune.core.errors import UserError, user_errors
from scoretune.core.records import Examples, spans
from scoretune.data.datasets import Data, read_data
from scoretune.diffusion.estimates import prediction_named
from scoretune.diffusion.named import kernel
from scoretune.diffusion.processes import process_named
from scoretune.evaluate import data_samples
from scoretune.evaluate.data_samples import DataSampler
from scoretune.models import score_network
from scoretune.models.lora import restore_adapter
from scoretune.models.networks import Design, weight_count
from scoretune.models.score_network import ScoreNetwork
from scoretune.policy import Policy
from scoretune.training import compressing, engine, trackers
from scoretune.training.compressing import Plan
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Average
from scoretune.training.objectives import FROM_DATA
from scoretune.training.objectives.method import DataSetup, batch_size
from scoretune.training.progress import Learner, Progress

HELD_OUT_LEAST = 512
"""Held-out examples, each with noise of its own, of one evaluation of the loss."""

LEAST = 15
"""Examples that a run needs: fewer have no covariance to speak of."""


@dataclass
class Parts(Learner):
    """Everything a run on data is made of."""

    model: ScoreNetwork
    data: Data
    held_out: Data
    average: Average
    plan: Plan | None = None
    """How the data are compressed."""


def check(run: Run) -> None:
    """Refuse settings that do not fit, before anything is read or loaded."""
    model, objective = run.model, run.objective
    trackers.check(run.tracking)
    if distributed.team().size > 1:
        raise UserError("a network of one's own learns in one process: start it without torchrun")
    for name, value, plain, why in (
        ("model.rank", model.rank, 0, "all weights are trained"),
        ("model.revision", model.revision, None, "the network is not from a hub"),
        ("model.precision", model.precision, "fp32", "it is trained whole"),
        ("model.guidance", model.guidance or 1.0, 1.0, "there are no prompts"),
        ("hardware", run.hardware, Hardware(), "it is small"),
        ("evaluation.gap.steps", run.evaluation.gap.steps, (), "there is no reward to compare"),
    ):
        if value != plain:
            raise UserError(
                f"{name}={value} does not suit a network of one's own: {why}; leave it out"
            )
    new = model.source in NEW_NETWORKS
    if new:
        with user_errors("model.process"):
            process = process_named(model.process or "VP()")
    else:
        if (model.process, model.prediction, model.width, model.depth) != (None, None, 0, 0):
            raise UserError(
                f"{model.source!r} is trained already and keeps what it is: leave out "
                "model.process, model.prediction, model.width and model.depth"
            )
        process = score_network.load(_model_folder(run)).process
    FROM_DATA[objective.kind].check_from_data(objective, process, new_network=new)


def build(run: Run) -> Parts:
    """The data, network and method of a configuration."""
    check(run)
    data = read_data(run.data, run.dataset)
    if len(data) < LEAST:
        raise UserError(
            f"{run.data!r} holds {len(data)} examples, too few to learn from and to measure with: "
            f"give {LEAST} or more"
        )
    learned, held_out = data.split(run.dataset.held_out, run.seed)
    for part, count in (("held out", len(held_out)), ("learned from", len(learned))):
        if count < 2:
            raise UserError(
                f"of {len(data)} examples in {run.data!r} {count} would be {part}, and 2 are "
                "needed to measure: change dataset.held_out, or give more data"
            )
    device = distributed.device()
    plan = _plan(run, learned)
    model = _model(run, learned, plan)
    model.network.to(device).requires_grad_(True)
    policy = Policy(model, kernel(run.sampling))
    setup = DataSetup(
        policy=policy,
        x0=model.embed(learned.states.to(device)),
        batch=batch_size(run.sizes),
        seed=run.seed,
        updates=run.updates,
        new_network=run.model.source in NEW_NETWORKS,
    )
    return Parts(
        model=model,
        policy=policy,
        data=learned,
        held_out=held_out,
        method=FROM_DATA[run.objective.kind].build_from_data(run.objective, setup),
        optimiser=engine.optimiser(run.optimiser, policy.parameters()),
        average=Average(model.network, run.optimiser.ema),
        plan=plan,
        engine=TorchEngine(device, skips=run.optimiser.nonfinite == "skip"),
    )


def _plan(run: Run, data: Data) -> Plan | None:
    """How a new network's data are to be measured, None where they are learned from themselves."""
    if run.compress.ratio is None:
        return None
    return compressing.plan(data, run.compress, square=run.model.source != "mlp", source=run.data)


def _model(run: Run, data: Data, plan: Plan | None) -> ScoreNetwork:
    """A new network for such data, or the one that is trained further."""
    wanted, shape = run.model, tuple(data.states.shape[1:])
    if wanted.source in NEW_NETWORKS:
        process = process_named(wanted.process or "VP()")
        prediction = prediction_named(wanted.prediction or "v_prediction")
        content, mean, std, compression = data.kind, data.mean, data.std, None
        if plan is not None:
            compression, mean, std = compressing.compression(data, run.compress, plan)
            shape, content = plan.state, "images" if plan.side else "points"
        design = Design(wanted.source, shape, content, wanted.width, wanted.depth)
        _check_room(design)
        return ScoreNetwork(design, process, prediction, mean, std, compression)
    model = score_network.load(_model_folder(run))
    own = model.data_shape
    grey = data.kind == "images" and shape[1:] == own[1:] and own[0] == 1
    if data.kind != model.content or not (shape == own or grey):
        raise UserError(
            f"{wanted.source!r} draws {model.content} of shape {own}, and "
            f"{run.data!r} holds {data.kind} of shape {shape}: give data like those it knows"
        )
    return model


def _check_room(design: Design) -> None:
    """Refuse a network that no memory holds before it is made: four numbers of four bytes a weight,
    with its gradient and AdamW's two averages."""
    needed, room = 16 * weight_count(design), reading.memory()
    if needed > room:
        raise UserError(
            f"a {design.kind} of that width and depth on states of shape {design.shape} needs "
            f"{needed / 2**30:,.0f} GiB to be trained, and this machine has {room / 2**30:,.0f}: "
            "lower model.width or model.depth"
        )


def _model_folder(run: Run) -> Path:
    home = model_folder.home(Path(run.model.source))
    assert home is not None, "only runs with such a folder come here"
    return home


def sampler_of(run: Run) -> DataSampler:
    """How the run's model is measured."""
    evaluation, objective = run.evaluation, run.objective
    assert isinstance(objective, Matching | Consistency)
    if isinstance(objective, Consistency):
        return DataSampler(
            evaluation.solver, evaluation.steps, objective.t_min, True, objective.sigma_data
        )
    return DataSampler(evaluation.solver, evaluation.steps, objective.t_min)


# ----------------------------------------------------------------------------------- measuring


def measured(run: Run, parts: Parts) -> tuple[dict[str, Any], Tensor]:
    """The numbers of the network with the weights that it has, and samples."""
    evaluation, sampler = run.evaluation, sampler_of(run)
    if parts.model.compression is not None:
        parts.model.compression.certificate.reset()
    samples = data_samples.draw(parts.policy, evaluation.samples, sampler, evaluation.seed)
    numbers = {
        "sampler": str(sampler),
        **data_samples.decoder(parts.model),
        "held_out_loss": held_out_loss(parts, evaluation.seed),
        **data_samples.distances(samples, parts.held_out.states, parts.model),
    }
    return numbers, samples


def floor(parts: Parts, evaluation: Evaluation) -> dict[str, float]:
    """The distances of data that are learned from, as many as are drawn, to those held out: a
    perfect model's."""
    generator = torch.Generator().manual_seed(evaluation.seed)
    order = torch.randperm(len(parts.data), generator=generator)[: evaluation.samples]
    return data_samples.distances(parts.data.states[order], parts.held_out.states, parts.model)


def progress_of(run: Run, folder: Path, parts: Parts) -> Progress:
    """How far a run on data has come."""
    kept = {"average": parts.average, "adaptive": parts.method.adaptive}
    return Progress(folder, parts, kept, run.updates, run.checkpoints.keep)


def held_out_loss(parts: Parts, seed: int, batch: int = 128) -> float:
    """The objective on examples that are never learned from, always with the same noise."""
    states = parts.model.embed(parts.held_out.states.to(parts.policy.device))
    index = torch.arange(max(HELD_OUT_LEAST, min(len(states), 2 * HELD_OUT_LEAST))) % len(states)
    torch.manual_seed(seed)  # training draws its own anew for every update
    total = 0.0
    for span in spans(len(index), batch):
        x0 = states[index[span]]
        ones = torch.ones(len(x0), device=x0.device)
        examples = Examples(x0, parts.model.encode([""] * len(x0)), ones)
        total += float(parts.method.objective(examples).value.detach()) * len(x0)
    return round(total / len(index), 6)


def compared(base: dict[str, Any], final: dict[str, Any], floor: dict[str, Any]) -> dict[str, Any]:
    """Every measure before and after, beside that of real data."""
    names = [name for name in ("held_out_loss", "sliced_wasserstein", "frechet") if name in final]
    return {
        "sampler": final["sampler"],
        **({"decoder": final["decoder"]} if "decoder" in final else {}),
        "data": {
            name: {"base": base[name], "final": final[name], "real": floor.get(name)}
            for name in names
        },
    }


# ------------------------------------------------------------------------------- finished runs


def measure(run: Run, folder: Path, features: str | None = None) -> dict[str, Any]:
    """The numbers of a run's newest checkpoint on its held-out data, also in named features."""
    checkpoints.newest(folder)  # there is one
    torch.manual_seed(run.seed)
    parts = build(run)
    update = progress_of(run, folder, parts).restore()
    with parts.average.in_place():
        numbers, samples = measured(run, parts)
        line = {"update": update, **numbers, "real": floor(parts, run.evaluation)}
    if features is not None:
        held_out = parts.held_out.states
        line[features] = data_samples.featured(samples, held_out, parts.model, features)
    return line


def trained(folder: Path) -> Policy:
    """The policy of a run on data: the averaged weights of its newest checkpoint."""
    state, home = checkpoints.load(checkpoints.newest(folder)), model_folder.home(folder)
    assert home is not None, "only runs with such a folder come here"
    policy = data_samples.policy_of(home)
    restore_adapter(policy.backbone.network, state["average"])
    return policy
