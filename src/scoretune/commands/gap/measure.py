"""The reward gap of a model, cell by cell: rows and a figure in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scoretune.commands.gap.cells import CellFile, weights_hash
from scoretune.commands.gap.figure import save_figure
from scoretune.core import distributed, model_folder
from scoretune.core.config import Run, Sampling
from scoretune.core.errors import UserError
from scoretune.core.files import write_whole
from scoretune.data.prompts import Prompts, read_prompts
from scoretune.evaluate import gap
from scoretune.evaluate.gap import BASE, TUNED, Comparison, Matrix, Row, explanation, matrix_of
from scoretune.models.catalog import guidance_of, resolve
from scoretune.models.lora import load_lora
from scoretune.models.sizes import check_drawable
from scoretune.policy import Policy, deployment_of
from scoretune.rewards.base import Reward, check_prompts
from scoretune.rewards.catalog import named_reward
from scoretune.training import run_folder
from scoretune.training.build import held_out_prompts
from scoretune.training.run_folder import recorded

OnCell = Callable[[str, int, int], None]
"""Called with the cell that was finished, how many are, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `scoretune gap` is to measure; None is what the run itself has, or a default."""

    model: str
    steps: tuple[int, ...]
    etas: tuple[float, ...]
    solvers: tuple[str, ...]
    fine: int
    reward: str | None = None
    lora: Path | None = None
    prompts: str | None = None
    per_task: int | None = None
    seed: int | None = None
    before: bool = False


def measure(request: Request, *, out: Path | None = None, on_cell: OnCell | None = None) -> Row:
    """Draw what is missing, write rows and figure below `out`, and return all that is known."""
    model = Path(request.model)
    run = recorded(model) if (model / "run.json").exists() else None
    name = request.reward or (run.reward if run else None)
    if name is None:
        raise UserError("say what is rewarded: --reward reader, or module:function")
    tuned = run is not None or request.lora is not None
    models = (BASE, TUNED) if request.before else (TUNED if tuned else BASE,)
    matrix = matrix_of(
        request.steps, request.etas, request.solvers, fine=request.fine, models=models
    )
    reward, policy = named_reward(name), _policy(request, run)
    comparison = _comparison(request, run, policy, name, reward)
    plain = re.sub(r"[^\w.-]", "-", name)
    folder = out or (model / "gap" if run else Path("gaps") / f"{model.name}-{plain}")
    folder.mkdir(parents=True, exist_ok=True)
    described = _described(request, policy, matrix, comparison)
    source = tuple(described[key] for key in ("model", "lora", "weights"))
    file = CellFile(folder / "cells.jsonl", source, policy, comparison)
    cells = matrix.cells
    rewards = file.read(cells)
    try:
        for cell in cells:
            if cell not in rewards:
                rewards[cell] = gap.rewards_of(policy, cell, comparison)
                file.append(cell, rewards[cell])
            if on_cell is not None:
                on_cell(f"{cell.sampler}, {cell.steps} steps", len(rewards), len(cells))
    finally:  # Ctrl-C too: what is finished can be read
        result = described | {
            "finished": len(rewards) == len(cells),
            "rows": gap.rows(matrix, rewards, comparison, policy.backbone.process),
            "out": str(folder),
        }
        write_whole(folder / "rows.json", json.dumps(result, indent=1) + "\n")
    save_figure(result, folder)
    return result


def _policy(request: Request, run: Run | None) -> Policy:
    """The model with its adapter."""
    if request.lora is not None and run is not None:
        raise UserError(
            "--lora goes on a bare model, and a run folder has an adapter of its own: give "
            f"{run.model.source} as the model"
        )
    policy = run_folder.load(request.model, distributed.device())
    if request.lora is not None:
        load_lora(policy.backbone.network, request.lora)
    if request.before and not policy.has_reference:
        raise UserError(
            f"--before compares with the pretrained model, and {request.model!r} has no adapter to "
            "switch off: give a run folder with model.rank above 0, or --lora"
        )
    return policy


def _comparison(
    request: Request, run: Run | None, policy: Policy, name: str, reward: Reward
) -> Comparison:
    seed = request.seed
    if seed is None:
        seed = run.evaluation.seed if run else 0
    prompts = _prompts(request, run)
    fix = "give --prompts FILE of such as it reads"
    check_prompts(reward, name, prompts.texts, source="the prompts", fix=fix)
    check_drawable(policy.backbone, prompts.texts)
    return Comparison(
        prompts,
        reward,
        name,
        run.sampling if run else Sampling(),
        seed,
        deployment_of(policy.backbone),
    )


def _prompts(request: Request, run: Run | None) -> Prompts:
    if run is not None and request.prompts is None:
        if request.per_task is None:
            return held_out_prompts(run)
        evaluation = run.evaluation.model_copy(update={"per_task": request.per_task})
        return held_out_prompts(run.model_copy(update={"evaluation": evaluation}))
    per_task = 30 if request.per_task is None else request.per_task
    if request.prompts is not None:
        prompts = read_prompts(request.prompts, per_task)
        most = request.per_task if set(prompts.tasks) == {"all"} else None  # of a file: its first
        return Prompts(prompts.texts[:most], prompts.tasks[:most])
    if resolve(request.model).shipped:
        return read_prompts("scenes-held-out", per_task)
    if model_folder.home(Path(request.model)) is not None:
        return read_prompts("none", request.per_task or 0)
    raise UserError("say what is drawn: --prompts FILE, one a line, or --prompts scenes-held-out")


def _described(request: Request, policy: Policy, matrix: Matrix, comparison: Comparison) -> Row:
    """What is measured, in words and numbers, for the file of rows."""
    return {
        "model": request.model,
        "lora": str(request.lora) if request.lora else None,
        "weights": weights_hash(policy),
        "reward": comparison.reward_name,
        "prompts": len(comparison.prompts),
        "seed": comparison.seed,
        "grid": comparison.grid,
        "guidance": guidance_of(policy),
        "fine": matrix.fine,
        "note": explanation(matrix),
    }
