"""What a scheduler of diffusers says of the network beside it, read here alone: the process, what
the network puts out and is told, and along which times the pipeline steps.

    noise table        x = √ᾱ x0 + √(1−ᾱ) ε, told the table's index
    flow               x = (1 − t) x0 + t ε, told n·t (arXiv 2403.03206)
    σ (EDM)            x = x0 + σ ε, told ¼ ln σ and shown x/√(σ² + σ_d²) (arXiv 2206.00364)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.core.errors import UserError, first_line
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import EDM, Process, RectifiedFlow, Tabulated, time_of_ratio

FLOWS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
SIGMAS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
LEAST_SIGNAL = 2**-32  # of a table that ends without any: a process needs some


@dataclass(frozen=True)
class Schedule:
    """A process, what a network of it puts out, and what it is told: `label` of times t [B] gives
    [B], and states are multiplied by `scale` of t [B], where there is one."""

    process: Process
    prediction: Prediction
    label: Callable[[Tensor], Tensor]
    scale: Callable[[Tensor], Tensor] | None = None


def schedule_of(source: str, scheduler: Any) -> Schedule:
    """What the scheduler of the pipeline `source` says. Raises UserError for one that is of no
    process of this version."""
    config = scheduler.config
    if is_flow(scheduler):
        count = int(config.num_train_timesteps)
        return Schedule(RectifiedFlow(), _flow_prediction(source, config), lambda t: count * t)
    if type(scheduler).__name__ in SIGMAS:
        return _sigmas(source, config)
    if config.get("timestep_type", "discrete") != "discrete":
        raise UserError(
            f"the scheduler of {source!r} has timestep_type {config.timestep_type!r}, which this "
            "version does not read: give the pipeline an EDMEulerScheduler"
        )
    process, prediction = noise_table(source, scheduler)
    return Schedule(process, prediction, process.label)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is of a rectified flow, by its class or by what it is set to."""
    config = scheduler.config
    named = type(scheduler).__name__ in FLOWS
    return named or bool(config.get("use_flow_sigmas")) or _predicts_flow(config)


def _predicts_flow(config: Any) -> bool:
    return bool(config.get("prediction_type") == "flow_prediction")


def _flow_prediction(source: str, config: Any) -> Prediction:
    """The velocity, but for a solver of noise tables that steps along a flow's times."""
    if config.get("invert_sigmas"):
        raise UserError(
            f"the scheduler of {source!r} runs from data to noise (invert_sigmas), which this "
            "version does not: set invert_sigmas to false in scheduler/scheduler_config.json"
        )
    kind = config.get("prediction_type", "flow_prediction")
    if kind == "epsilon":
        raise UserError(
            f"the scheduler of {source!r} steps along a flow and has prediction_type epsilon, "
            "which tells nothing where a flow begins: set flow_prediction, or use_flow_sigmas=false"
        )
    return estimates.velocity if kind == "flow_prediction" else _prediction(source, kind)


def _prediction(source: str, kind: str) -> Prediction:
    try:
        return prediction_named(kind)
    except ValueError as error:
        raise UserError(
            f"the scheduler of {source!r} has prediction_type {kind!r}: {error}"
        ) from None


def noise_table(source: str, scheduler: Any) -> tuple[Tabulated, Prediction]:
    """A scheduler's noise table and prediction. Raises UserError without one."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise UserError(
            f"the scheduler of {source!r} is a {type(scheduler).__name__}, which has no noise "
            "table: give the pipeline the one its network was trained with, as DDIMScheduler"
        )
    prediction = _prediction(source, scheduler.config.get("prediction_type", "epsilon"))
    *signal, last = table.double().tolist()
    last = last or LEAST_SIGNAL
    # diffusers itself may put 2**-24 behind less of it.
    return Tabulated((*signal, last if last < signal[-1] else signal[-1] / 2)), prediction


def _sigmas(source: str, config: Any) -> Schedule:
    """EDM's preconditioning: x̂0 = c_skip x + c_out F, of which F is (σ² x0 − σ_d² σ ε)/(σ σ_d h)
    with h = √(σ² + σ_d²); `v_prediction` has the other sign."""
    deviation, kind = float(config.sigma_data), config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UserError(
            f"the scheduler of {source!r} has prediction_type {kind!r}, which this version does "
            "not read of EDM: set epsilon or v_prediction"
        )
    sign = 1.0 if kind == "epsilon" else -1.0

    def whole(t: Tensor) -> Tensor:
        return torch.sqrt(t**2 + deviation**2)

    def row(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        return sign * t / (deviation * whole(t)), -sign * deviation / whole(t)

    return Schedule(
        EDM(float(config.sigma_max)),
        Prediction(f"EDM's {kind}", row),
        label=lambda t: torch.log(t) / 4,
        scale=lambda t: 1 / whole(t),
    )


# ----------------------------------------------------------------------------- where it steps


def scheduled_times(schedule: Schedule, scheduler: Any, steps: int) -> Tensor:
    """The decreasing times [N+1] along which the pipeline itself would step, from its scheduler's
    config.

    A scheduler that asks the network more than once a step has as many times as it has noise
    levels. Raises UserError for a number of steps that it cannot take.
    """
    own = copied(scheduler)
    with taking(own, steps):
        own.set_timesteps(steps)
    return times_along(schedule, own, steps)


def times_along(schedule: Schedule, stepped: Any, steps: int) -> Tensor:
    """The times [N+1] of a scheduler that has made its own for so many steps."""
    times = _times(schedule.process, stepped)
    if len(times) < 2 or not bool((times.diff() < 0).all()):
        raise UserError(
            f"{type(stepped).__name__} does not go from noise to data in {steps} steps: choose "
            "another"
        )
    return times.float()


@contextmanager
def taking(scheduler: Any, steps: int) -> Iterator[None]:
    """Within this context a scheduler makes its times."""
    try:
        yield
    except ValueError as error:
        name = type(scheduler).__name__
        raise UserError(f"{name} does not take {steps} steps: {first_line(error)}") from error


def copied(scheduler: Any) -> Any:
    """A copy of a scheduler, to make its times with."""
    own = copy.deepcopy(scheduler)  # from_config would forget what a pipeline mended in it
    if _predicts_flow(own.config):
        own.register_to_config(use_flow_sigmas=True)
    return own


def _times(process: Process, stepped: Any) -> Tensor:
    """What a scheduler has made, as times of the process, in float64."""
    sigmas = vars(stepped).get("sigmas")
    if not isinstance(process, Tabulated):
        times: Tensor = torch.unique_consecutive(torch.as_tensor(sigmas).double())
        return times
    if sigmas is None:
        labels = torch.unique_consecutive(stepped.timesteps).double()
        nodes = (labels + 1) / process.n
        # A consistency model ends at its last estimate, whatever its table begins with.
        whole = stepped.config.get("set_alpha_to_one", True) or "original_inference_steps" in (
            stepped.config
        )
        final = 0.0 if whole else 1 / process.n
        return torch.cat([nodes[nodes > final], nodes.new_tensor([final])])
    ratios: Tensor = torch.unique_consecutive(torch.as_tensor(sigmas).double())
    return torch.where(ratios > 0, time_of_ratio(process, ratios), 0.0)
