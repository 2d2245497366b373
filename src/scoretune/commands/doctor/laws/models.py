"""Laws that any model must obey, whatever it draws."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from scoretune.commands.doctor.laws.base import Law
from scoretune.core.conditions import Condition
from scoretune.core.records import Trajectory
from scoretune.data.scenes import world
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import Process, noise_ratio
from scoretune.models.catalog import move
from scoretune.policy import Policy
from scoretune.rollout import deterministic, prior, rollout

SAMPLES, STEPS = 32, 50
ETAS = (0.5, 1.0)
_SAME = "the same ODE"


def laws_of(policy: Policy, base: Policy | None = None) -> tuple[Law, ...]:
    """The laws of a model; with `base`, the model before it was fine-tuned, its adapter too."""
    draws = Draws(policy)
    laws = [
        Law("model: ratio, unchanged", 1, draws.ratio, 0, "one door for all"),
        Law("model: infinite log-probabilities", 0, draws.not_finite, 0, "definition"),
        Law("model: same seed", 0, draws.repeats, 0, "determinism"),
        *(
            Law(f"model: {name} against Heun", 0, partial(draws.solver, name=name), 0.1, _SAME)
            for name in ("ddim", "dpmpp_2m")
        ),
        *(
            Law(
                f"model: η = {eta:g} and the ODE, z-score",
                0,
                partial(draws.against_the_ode, eta=eta),
                4,
                "the family has the same marginals (arXiv 2206.05564 eq. 6)",
                of_scores=True,
            )
            for eta in ETAS
        ),
    ]
    if base is not None and policy.has_reference:
        off = partial(draws.reference, base=base)
        laws.append(Law("model: adapter off", 0, off, 1e-5, "one network"))
    return tuple(laws)


class Draws:
    """Measurements on one policy, on the device that is an argument of each."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.statistics: dict[tuple[torch.device, float], Tensor] = {}
        self.solved: dict[tuple[torch.device, str], Tensor] = {}

    def ratio(self, device: torch.device) -> float:
        """The likelihood ratio of a step, farthest from 1, by the policy that took it."""
        policy, path = self._path(device, 4, 6)
        assert path.log_probs is not None
        ratios = []
        for k, old in enumerate(path.log_probs):
            t, t_next = path.times[k], path.times[k + 1]
            again = policy.transition(path.states[k], t, t_next, path.condition)
            ratios.append(torch.exp(again.log_prob(path.states[k + 1]) - old))
        every = torch.stack(ratios).flatten()
        return float(every[(every - 1).abs().argmax()])

    def not_finite(self, device: torch.device) -> float:
        """How many steps of a path have no finite log-probability."""
        path = self._path(device, 4, 20)[1]
        assert path.log_probs is not None
        return float((~torch.isfinite(path.log_probs)).sum())

    def repeats(self, device: torch.device) -> float:
        """Largest difference between two paths of one seed."""
        one, other = (self._path(device, 2, 6)[1].final for _ in range(2))
        return float((one - other).abs().max())

    def solver(self, device: torch.device, name: str) -> float:
        """Distance of 80 steps to 30 of Heun in deviations of the samples, the median sample's.

        The median, since noise on a watershed between two pictures may flow to either.
        """
        fine, coarse = self._solved(device, "heun", 30), self._solved(device, name, 80)
        apart = (coarse - fine).flatten(1).pow(2).mean(1).sqrt()
        return float(apart.median() / fine.std())

    def _solved(self, device: torch.device, name: str, steps: int) -> Tensor:
        if (device, name) not in self.solved:
            policy, condition, x = self._start(device, 8, 0)
            times = ending(policy.backbone.process, steps)
            self.solved[device, name] = deterministic(policy, condition, times, x, name)
        return self.solved[device, name]

    def against_the_ode(self, device: torch.device, eta: float) -> float:
        """The largest z-score of three statistics of gDDIM(η)'s samples, against DDIM's own."""
        one, other = self._statistics(device, eta), self._statistics(device, 0.0)
        error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
        return float(((one.mean(0) - other.mean(0)) / error).abs().max())

    def reference(self, device: torch.device, base: Policy) -> float:
        """Largest difference between the model with its adapter off and the pretrained one."""
        policy, condition, x = self._start(device, 4, 0)
        move(base.backbone, device)
        t = torch.full((len(x),), policy.backbone.process.horizon / 2, device=device)
        with policy.reference():
            off = policy.estimate(x, t, condition).data
        return float((off - base.estimate(x, t, condition).data).abs().max())

    def _statistics(self, device: torch.device, eta: float) -> Tensor:
        """Mean, mean square and largest size of each sample, [SAMPLES, 3]."""
        if (device, eta) not in self.statistics:
            seed = round(10 * eta)  # independent of the samples it is compared with
            policy, condition, x = self._start(device, SAMPLES, seed)
            times = ending(policy.backbone.process, STEPS)
            if eta == 0:
                samples = deterministic(policy, condition, times, x)
            else:
                noisy = replace(policy, kernel=GDDIM(eta))
                generator = torch.Generator().manual_seed(100 + seed)
                samples = rollout(noisy, condition, times, generator, x).final
            rows = samples.flatten(1).double()
            self.statistics[device, eta] = torch.stack(
                [rows.mean(1), rows.pow(2).mean(1), rows.abs().amax(1)], 1
            )
        return self.statistics[device, eta]

    def _path(self, device: torch.device, batch: int, steps: int) -> tuple[Policy, Trajectory]:
        policy, condition, x = self._start(device, batch, 1)
        policy = replace(policy, kernel=GDDIM(1.0))
        times = ending(policy.backbone.process, steps)
        return policy, rollout(policy, condition, times, torch.Generator().manual_seed(2), x)

    def _start(
        self, device: torch.device, batch: int, seed: int
    ) -> tuple[Policy, Condition, Tensor]:
        move(self.policy.backbone, device)
        texts = itertools.islice(itertools.cycle(world.asks_by_text()), 0, 37 * batch, 37)
        noise = prior(self.policy, batch, torch.Generator().manual_seed(seed)).to(device)
        return self.policy, self.policy.backbone.encode(list(texts)), noise


def ending(process: Process, steps: int) -> Tensor:
    """A grid whose last step still has noise, and whose first begins where the process does."""
    end = max(grids.default_end(process), 1e-3 * process.horizon)
    start = noise_ratio(process, torch.tensor(process.horizon, dtype=torch.float64))
    if bool(torch.isfinite(start)):
        return grids.karras(process, steps, t_end=end)
    return grids.shifted(process, steps, 3.0, t_end=end)
