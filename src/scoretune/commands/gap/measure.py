"""`scoretune gap`: the reward gap of a model as a table, a figure and rows, cell by cell.

Finished cells are kept beside the rows, by everything that decides them, so that a second call with
the same arguments goes on where the first was stopped.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scoretune import __version__
from scoretune.commands.gap.figure import save_figure
from scoretune.core import model_folder
from scoretune.core.config import Run, Sampling
from scoretune.core.errors import UserError
from scoretune.core.files import append_line
from scoretune.data.prompts import Prompts, read_prompts
from scoretune.evaluate import gap
from scoretune.evaluate.gap import Found, Ground, Row
from scoretune.evaluate.gap_plan import BASE, TUNED, Cell, Plan, planned, told_of
from scoretune.models.catalog import resolve
from scoretune.models.lora import load_lora
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.catalog import named_reward
from scoretune.training import run_folder
from scoretune.training.build import held_out_prompts
from scoretune.training.run_folder import recorded

Watch = Callable[[str, int, int], None]
"""Told the cell that was finished, how many are, and how many there are."""


@dataclass(frozen=True)
class Asked:
    """The matrix that is wanted; None is what the run itself has, or a default."""

    steps: tuple[int, ...] = (5, 10, 20, 50)
    etas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.2, 1.5)
    solvers: tuple[str, ...] = ("gddim",)
    prompts: str | None = None
    per_task: int | None = None
    seed: int | None = None
    fine: int = 100
    before: bool = False


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    policy: Policy
    plan: Plan
    ground: Ground
    told: Row
    """What it was, in words and numbers, for the file of rows."""


def listed(what: str, text: str, kind: type[int] | type[float]) -> tuple[Any, ...]:
    """`5,10,20` as numbers. Raises UserError for anything else."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"--{what} {text!r} is no list of numbers: write it as 5,10,20") from None


def measure(
    model: str,
    asked: Asked,
    reward: str | None,
    *,
    lora: Path | None = None,
    out: Path | None = None,
    watch: Watch | None = None,
) -> Row:
    """Draw what is missing, write rows and figure below `out`, and return all that was found."""
    home = Path(model)
    run = recorded(home) if (home / "run.json").exists() else None
    if run is None and reward is None:
        raise UserError("say what is rewarded: --reward reader, or module:function")
    tuned = run is not None or lora is not None
    plan = planned(
        asked.steps,
        asked.etas,
        asked.solvers,
        fine=asked.fine,
        models=((BASE, TUNED) if asked.before else (TUNED if tuned else BASE,)),
    )
    name = reward or (run.reward if run else "")
    subject = _subject(model, run, asked, lora, (plan, name, named_reward(name)))
    folder = out or (home / "gap" if run else Path("gaps") / f"{home.name}-{_plain(name)}")
    folder.mkdir(parents=True, exist_ok=True)
    found = _kept(subject, folder)
    try:
        for cell in plan.cells:
            if cell not in found:
                found[cell] = gap.rewards_of(subject.policy, cell, subject.ground)
                append_line(folder / "cells.jsonl", _line(subject, cell, found[cell]))
            if watch is not None:
                watch(f"{cell.sampler}, {cell.steps} steps", len(found), len(plan.cells))
    finally:  # Ctrl-C too: what is finished can be read
        result = subject.told | {"finished": len(found) == len(plan.cells)}
        result["rows"] = gap.rows(plan, found, subject.ground, subject.policy.backbone.process)
        result["out"] = str(folder)
        _write(folder / "rows.json", result)
    save_figure(result, folder)
    return result


def _subject(
    model: str,
    run: Run | None,
    asked: Asked,
    lora: Path | None,
    chosen: tuple[Plan, str, Reward],
) -> Subject:
    plan, name, reward = chosen
    if lora is not None and run is not None:
        raise UserError(
            "--lora goes on a bare model, and a run folder has an adapter of its own: give "
            f"{run.model.source} as the model"
        )
    policy = run_folder.load(model)
    if lora is not None:
        load_lora(policy.backbone.network, lora)
    if asked.before and not policy.has_reference:
        raise UserError(
            f"--before compares with the pretrained model, and {model!r} has no adapter to switch "
            "off: give a run folder with model.rank above 0, or --lora"
        )
    evaluation = run.evaluation.seed if run else 0
    seed = evaluation if asked.seed is None else asked.seed
    prompts = _prompts(model, run, asked)
    ground = Ground(prompts, reward, name, run.sampling if run else Sampling(), seed)
    told = {
        "model": model,
        "lora": str(lora) if lora else None,
        "weights": fingerprint(policy),
        "reward": name,
        "prompts": len(prompts),
        "seed": seed,
        "grid": ground.sampling.grid,
        "guidance": policy.guidance,
        "fine": plan.fine,
        "note": told_of(plan),
    }
    return Subject(policy, plan, ground, told)


def _prompts(model: str, run: Run | None, asked: Asked) -> Prompts:
    if run is not None and asked.prompts is None:
        if asked.per_task is None:
            return held_out_prompts(run)
        chosen = run.evaluation.model_copy(update={"per_task": asked.per_task})
        return held_out_prompts(run.model_copy(update={"evaluation": chosen}))
    per_task = 30 if asked.per_task is None else asked.per_task
    if asked.prompts is not None:
        found = read_prompts(asked.prompts, per_task)
        most = asked.per_task if set(found.tasks) == {"all"} else None  # of a file: its first
        return Prompts(found.texts[:most], found.tasks[:most])
    if resolve(model).shipped:
        return read_prompts("scenes-held-out", per_task)
    if model_folder.home(Path(model)) is not None:
        return read_prompts("none", asked.per_task or 0)
    raise UserError("say what is drawn: --prompts FILE, one a line, or --prompts scenes-held-out")


# ------------------------------------------------------------------------------ kept cells


def fingerprint(policy: Policy) -> str:
    """A hash of the network's weights, adapter included."""
    found = hashlib.sha256()
    for name, tensor in sorted(policy.backbone.network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def _key(subject: Subject, cell: Cell) -> str:
    """A hash of everything that decides a cell."""
    ground, policy = subject.ground, subject.policy
    decides = [
        *(subject.told[name] for name in ("model", "lora", "weights", "reward", "seed")),
        policy.guidance,
        *(ground.prompts.texts, ground.sampling.grid, ground.sampling.shift),
        *(str(policy.backbone.process), _source_of(ground.reward), __version__),
        *(str(cell.sampler.solver), cell.sampler.eta, cell.steps, cell.model),
    ]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _source_of(reward: Reward) -> str:
    """What a user's own function says now; a cell of another text is another cell."""
    try:
        return inspect.getsource(inspect.getmodule(reward) or type(reward))
    except (OSError, TypeError):
        return type(reward).__name__


def _line(subject: Subject, cell: Cell, found: Found) -> Row:
    about = {"model": cell.model, "sampler": str(cell.sampler), "steps": cell.steps}
    values = {"reason": found} if isinstance(found, str) else {"values": found.tolist()}
    return {"key": _key(subject, cell), **about, **values}


def _kept(subject: Subject, folder: Path) -> dict[Cell, Found]:
    """The cells of an earlier call that were decided by the very same things."""
    known: dict[str, Found] = {}
    path = folder / "cells.jsonl"
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            known[line["key"]] = line.get("reason") or torch.tensor(line["values"])
        except (ValueError, KeyError, TypeError):
            continue  # the line that was being written when the process was killed
    keys = {cell: _key(subject, cell) for cell in subject.plan.cells}
    return {cell: known[key] for cell, key in keys.items() if key in known}


def _write(path: Path, result: Row) -> None:
    aside = path.with_name(path.name + ".writing")
    aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)


def _plain(name: str) -> str:
    """A name that can be a folder's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
