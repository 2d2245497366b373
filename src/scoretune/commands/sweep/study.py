"""The study of a sweep in Optuna's storage: what is searched, the runs that wait, and what they
came to. Every run is a trial; whoever shares the storage takes the next one that waits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from scoretune.commands.sweep.ranges import Choice, Range, Space, drawn
from scoretune.core.errors import UserError, first_line

REDUCTION = 3
"""Successive halving goes on with the best third of the runs that came as far."""
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class Plan:
    """What a sweep is: a recipe with `fixed` changes, what is searched, by which number of the
    evaluations it is judged, how often each setting is run, whether runs may be given up at their
    first evaluation, the one with `REDUCTION` times its number, and so on, and how many network
    evaluations each run's training has (0: its own updates)."""

    recipe: str
    fixed: tuple[str, ...]
    space: Space
    by: str
    seeds: int
    halving: bool
    seed: int
    evaluations: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain data: two sweeps are one if these are the same."""
        plain = asdict(self)
        return {**plain, "fixed": list(self.fixed), "space": [_plain(d) for d in self.space]}


def _plain(dimension: Range | Choice) -> dict[str, Any]:
    fields = asdict(dimension)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Within this context what the storage says of itself is a UserError."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(
            f"the study in {shown(url)} does not answer ({first_line(error)[:120]}): check the "
            "path or the URL, and that its server runs"
        ) from error
    except (ModuleNotFoundError, ImportError) as error:
        raise UserError(f"the study in {shown(url)} needs a driver: {first_line(error)}") from error


def shown(url: str) -> str:
    """A URL as it may be shown: without a password."""
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return repr(url)


def opened(url: str, name: str, plan: Plan | None = None) -> optuna.Study:
    """The study of that name, made for a plan if there is none.

    Raises UserError where it holds another plan, or none was given and there is none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with storage_errors(url):
        storage = optuna.storages.RDBStorage(url)
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if plan is not None and plan.halving:
            pruner = optuna.pruners.SuccessiveHalvingPruner(1, REDUCTION)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(),
            pruner=pruner,
            load_if_exists=True,
        )
        if plan is None:
            return study
        there = study.user_attrs.get("plan")
        if there is None:
            study.set_user_attr("plan", plan.as_dict())
        elif there != plan.as_dict():
            differ = ", ".join(k for k, v in plan.as_dict().items() if there.get(k) != v)
            raise UserError(
                f"{name!r} in {shown(url)} is a sweep with another {differ}: repeat its command to "
                "go on with it, or choose another --out"
            )
    return study


def add(study: optuna.Study, plan: Plan, runs: int) -> None:
    """Let runs wait until there are so many in all."""
    for number in range(len(study.get_trials(deepcopy=False)), runs):
        study.enqueue_trial(drawn(plan.space, plan.seed, number), skip_if_exists=True)


def waiting(study: optuna.Study) -> bool:
    """Whether a run waits for somebody to take it."""
    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def taken(study: optuna.Study, space: Space) -> optuna.Trial:
    """The next run that waits, or one drawn anew where another machine was quicker."""
    trial = study.ask()
    for dimension in space:
        _suggested(trial, dimension)
    return trial


def _suggested(trial: optuna.Trial, dimension: Range | Choice) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(dimension.path, list(dimension.values))
    if dimension.whole:
        ends = int(dimension.low), int(dimension.high)
        return trial.suggest_int(dimension.path, *ends, log=dimension.log)
    return trial.suggest_float(dimension.path, dimension.low, dimension.high, log=dimension.log)


def orphans(study: optuna.Study, home: str) -> list[int]:
    """The runs that were begun from this folder and have not ended."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial.number for trial in running if trial.user_attrs.get("home") == home]


def adopted(study: optuna.Study, number: int) -> optuna.Trial:
    """A run that another process had begun, to be gone on with."""
    numbered = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    return optuna.Trial(study, numbered[number]._trial_id)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """The runs that came to their end, the best first."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(ended, key=lambda trial: -(trial.value or 0.0))


def importance(study: optuna.Study, space: Sequence[Range | Choice]) -> dict[str, float]:
    """The share of the result's variance that each setting explains (functional ANOVA, Hutter et
    al. 2014), where enough runs came to their end; the largest first."""
    if len(ranked(study)) < 4 or len(space) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # every run came to the same
        return {}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
