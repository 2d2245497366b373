"""Consistency: make one call of the network say where a whole path of the ODE began.

    E λ(t) d(f_θ(x_t, t), f_θ⁻(x_{t'}, t'))

x_{t'} lies a step nearer to the data: where the pretrained network's ODE leads (distillation,
arXiv 2303.01469 Alg. 2), or the same data and noise mixed for t' (training, Alg. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from scoretune.core import config
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Examples, Loss
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.matching import consistency
from scoretune.diffusion.processes import Process, noise_ratio
from scoretune.diffusion.transitions import wide
from scoretune.models.lora import adapter_state, exchanged
from scoretune.policy import Policy
from scoretune.training.objectives import method
from scoretune.training.objectives.method import Context, Costs, DataSetup, Method, Paths, Setup


@dataclass(frozen=True)
class Distillation:
    """Follow the pretrained network's ODE on `points` times; the target is an average of the past.

    Squared distance, a mean over dimensions; every pair of times alike (arXiv 2303.01469 Table 3).
    """

    points: int = 40
    solver: consistency.Solver = "heun"
    decay: float = 0.95

    def at(self, update: int) -> tuple[int, float]:
        """(times of the grid, memory μ of the target) at an update."""
        return self.points, self.decay


@dataclass(frozen=True)
class Training:
    """No teacher. The grid grows finer over the `updates` of the whole run.

    "ict" (arXiv 2310.14189): 10 doubles to 1280, pairs log-normal in ρ, λ = 1/(ρ_t − ρ_t'),
    pseudo-Huber distance, no memory. "ct" (arXiv 2303.01469): 2 grows to 150, squared distance.
    """

    updates: int
    rule: Literal["ict", "ct"] = "ict"
    last: int | None = None

    def at(self, update: int) -> tuple[int, float]:
        """(times of the grid, memory μ of the target) at an update."""
        now = min(update, self.updates - 1)
        if self.rule == "ict":
            return consistency.ict_points(now, self.updates, last=self.last or 1280), 0.0
        points = consistency.ct_points(now, self.updates, last=self.last or 150)
        return points, consistency.ct_decay(points)


Plan: TypeAlias = Distillation | Training


@dataclass
class Consistency:
    """The consistency loss of a policy, with the target network and the teacher it needs.

    A policy's guidance is the teacher's; the student learns the guided path and is asked once. The
    target holds only what is trained: a second adapter, or a second set of weights under full
    fine-tuning, which also needs a third for the teacher. `adapt` is a hook: after each update the
    target follows. Afterwards `consistency.function(process, field)` of the policy's own field,
    with this `t_min` and `sigma_data`, generates.
    """

    policy: Policy
    plan: Plan = field(default_factory=Distillation)
    t_min: float = 1e-3
    sigma_data: float = 0.5
    update: int = 0
    _target: dict[str, Tensor] = field(init=False, repr=False)
    _teacher: dict[str, Tensor] | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._target = self._copy() if self._remembers else {}
        teaches = isinstance(self.plan, Distillation) and not self.policy.has_reference
        self._teacher = self._copy() if teaches else None
        self._times()  # refuses a t_min or a number of points that no grid has

    def __call__(self, examples: Examples) -> Loss:
        process, x0 = self.policy.backbone.process, examples.x0
        times = self._times().float().to(x0.device)
        pair, spacing = self._pairs(times, len(x0))
        t, t_next = times[pair], times[pair + 1]
        eps = torch.randn_like(x0)
        x = estimates.perturb(process, t, x0, eps)
        with torch.no_grad():  # before the student: weights are exchanged under its graph otherwise
            if isinstance(self.plan, Distillation):
                x_next = self._taught(x, t, t_next, examples.condition)
            else:
                x_next = estimates.perturb(process, t_next, x0, eps)
            with exchanged(self.policy.backbone.network, self._target):
                goal = self._jump(x_next, t_next, examples.condition)
        difference = self._jump(x, t, examples.condition) - goal
        if isinstance(self.plan, Training) and self.plan.rule == "ict":
            error = consistency.pseudo_huber(difference) / spacing
        else:
            error = (difference**2).flatten(1).mean(1)
        metrics = {"consistency": float(error.detach().mean()), "grid": float(len(times))}
        return Loss((examples.weight * error).mean(), metrics)

    @torch.no_grad()
    def adapt(self, update: int, metrics: Mapping[str, float]) -> None:
        """Move the target after an update: θ⁻ ← μθ⁻ + (1 − μ)θ."""
        decay = self.plan.at(self.update)[1]
        self.update = update
        weights = adapter_state(self.policy.backbone.network)
        for name, mean in self._target.items():
            mean.lerp_(weights[name].to(mean), 1 - decay)

    def state(self) -> dict[str, Any]:
        return {"update": self.update, "target": self._target}

    def restore(self, state: dict[str, Any]) -> None:
        if state["target"].keys() != self._target.keys():
            raise UserError("the checkpoint holds another target network: same model.rank?")
        self.update = state["update"]
        for name, tensor in self._target.items():
            tensor.copy_(state["target"][name])

    @property
    def _remembers(self) -> bool:
        return not (isinstance(self.plan, Training) and self.plan.rule == "ict")

    def _times(self) -> Tensor:
        points = self.plan.at(self.update)[0]
        return consistency.grid(self.policy.backbone.process, points, self.t_min)

    def _pairs(self, times: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Which step of the grid each sample learns from [B], and how long it is in ρ, [B]."""
        ratios = noise_ratio(self.policy.backbone.process, times)
        if isinstance(self.plan, Training) and self.plan.rule == "ict":
            likely = consistency.lognormal_pairs(ratios)
            pair = torch.multinomial(likely, count, replacement=True)
        else:
            pair = torch.randint(len(times) - 1, (count,), device=times.device)
        return pair, ratios[pair] - ratios[pair + 1]

    def _jump(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """f(x, t) by one unguided call."""
        alone = Policy(self.policy.backbone, self.policy.kernel, autocast=self.policy.autocast)
        process, field = alone.backbone.process, alone.field(condition)
        jump = consistency.function(process, field, t_min=self.t_min, sigma_data=self.sigma_data)
        data = jump(x, t)
        self.policy.calls += alone.calls
        return data

    def _taught(self, x: Tensor, t: Tensor, t_next: Tensor, condition: Condition) -> Tensor:
        assert isinstance(self.plan, Distillation)

        def teacher(at: Tensor, time: Tensor) -> Estimate:
            return self.policy.estimate(at, time, condition)

        policy, network = self.policy, self.policy.backbone.network
        process = policy.backbone.process
        with policy.reference() if self._teacher is None else exchanged(network, self._teacher):
            return consistency.ode_step(process, teacher, x, t, t_next, solver=self.plan.solver)

    def _copy(self) -> dict[str, Tensor]:
        """What is trained, in float32 or wider: an average in half precision would stand still."""
        weights = adapter_state(self.policy.backbone.network)
        return {name: wide(p.detach()).clone() for name, p in weights.items()}


# ------------------------------------------------------------------------------------- the method

follows_reward = False


def check(settings: config.Consistency, context: Context) -> None:
    raise UserError(
        "recipe 'consistency' is for networks of one's own: set model.source to the folder of "
        "a run on data, or to a new unet, dit or mlp"
    )


def build(settings: config.Consistency, setup: Setup) -> Method:
    raise AssertionError("refused by `check`")


def check_from_data(settings: config.Consistency, process: Process, *, new_network: bool) -> None:
    if settings.rule == "distillation" and new_network:
        raise UserError(
            "there is nothing to distil in a new network: set model.source to the folder of a "
            "run on data, or objective.rule=ict"
        )
    method.check_first_time(settings.t_min, process)


def build_from_data(settings: config.Consistency, setup: DataSetup) -> Method:
    objective = Consistency(
        setup.policy,
        plan_of(settings, new_network=setup.new_network, updates=setup.updates),
        t_min=settings.t_min,
        sigma_data=settings.sigma_data,
    )
    return Method(objective, method.unconditional(setup), objective)


def costs(settings: config.Consistency, context: Context, paths: Paths) -> Costs:
    distils = rule_of(settings, new_network=context.new_network) == "distillation"
    teacher = distils * (2 if settings.solver == "heun" else 1)
    return Costs(1, calls=2 + teacher, frozen=1 + teacher)


def rule_of(
    settings: config.Consistency, *, new_network: bool
) -> Literal["distillation", "ict", "ct"]:
    """The rule that settings name; "auto" distils a trained network and trains a new one."""
    if settings.rule == "auto":
        return "ict" if new_network else "distillation"
    return settings.rule


def plan_of(settings: config.Consistency, *, new_network: bool, updates: int) -> Plan:
    """The plan of the rule."""
    rule = rule_of(settings, new_network=new_network)
    if rule == "distillation":
        return Distillation(settings.points or 40, settings.solver, settings.decay)
    return Training(updates, rule, settings.points or None)
