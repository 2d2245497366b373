"""What a user can get wrong is one line that names the thing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scoretune.control import (
    CTD0,
    KL,
    Clip,
    ControlledSDE,
    GaussianLinear,
    SqrtKL,
    cpg,
    cppo,
    simulate,
)
from scoretune.core.errors import UserError


class Walk(ControlledSDE):
    """A fair problem to spoil."""

    discount = 1.0

    def start(self, count, generator):
        return torch.randn(count, 1, generator=generator)

    def drift(self, x, a):
        return a - x

    def diffusion(self, x, a):
        return torch.ones_like(x)

    def reward(self, x, a):
        return -(x**2 + a**2)[:, 0]


def spoiled(**members):
    return type("Walk", (Walk,), members)()


def ones(x, a):
    return torch.ones(x.shape[0], 3)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"discount": 0.0}, "Walk.discount must be > 0 when the horizon is infinite, got 0.0"),
        ({"discount": -1.0}, "Walk.discount must be > 0"),
        ({"discount": math.nan}, "Walk.discount must be > 0"),
        ({"discount": -1.0, "horizon": 1.0}, "Walk.discount must be finite and >= 0"),
        ({"horizon": 0.0}, "Walk.horizon must be finite and > 0"),
        ({"horizon": math.inf}, "Walk.horizon must be finite and > 0"),
        ({"temperature": -0.1}, "Walk.temperature must be finite and >= 0"),
        ({"diffusion": lambda s, x, a: 0 * x}, "Walk.diffusion is 0 at every state"),
        ({"diffusion": lambda s, x, a: ones(x, a)}, r"Walk.diffusion must return .*, got \[8, 3\]"),
        ({"drift": lambda s, x, a: ones(x, a)}, r"Walk.drift must return \[8, 1\], got \[8, 3\]"),
        ({"drift": lambda s, x, a: 1e30 * x**3}, "a path of Walk stops being finite at t = "),
        ({"reward": lambda s, x, a: x}, r"Walk.reward must return \[B\], got "),
        ({"start": lambda s, n, g: torch.zeros(n)}, r"Walk.start must return \[8, 1\]"),
        (
            {"reward": lambda s, x, a: torch.log(x[:, 0])},
            r"Walk.reward is nan at state \(-.*\), action \(.*\): it must be finite",
        ),
        ({"start": lambda s, n, g: torch.full((n, 1), math.nan)}, "stops being finite at t = 0"),
    ],
)
def test_problems(members, message):
    with pytest.raises(UserError, match=message) as raised:
        cpg(spoiled(**members), dt=0.1, iterations=1, trajectories=8)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("learn", [cpg, cppo])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt": 0.0}, "dt must be finite and > 0, got 0.0"),
        ({"dt": -0.1}, "dt must be finite and > 0"),
        ({"dt": math.nan}, "dt must be finite and > 0"),
        ({"dt": math.inf}, "dt must be finite and > 0"),
        ({"dt": 5.0}, "dt = 5.0 must be at most the simulated time 4.0"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"trajectories": 0}, "trajectories must be at least 1"),
        ({"truncation": -1.0}, "truncation must be finite and > 0"),
        ({"truncation": math.inf}, "truncation must be finite and > 0"),
        ({"clocks": 0}, "clocks must be at least 1"),
        ({"policy": nn.Linear(1, 1)}, r"a policy must return \(mean, std\)"),
        ({"policy": GaussianLinear(2)}, "looks at 2 numbers, the problem shows 1"),
        ({"policy": GaussianLinear(1, 2)}, "the policy gives 2 actions, the problem takes 1"),
        ({"critic": nn.Linear(1, 3)}, "the critic must map .* to one number each"),
    ],
)
def test_arguments(learn, options, message):
    with pytest.raises(UserError, match=message):
        learn(Walk(), **{"dt": 0.5, "iterations": 1, "trajectories": 4, **options})


class Rigid(nn.Linear):
    def forward(self, seen):
        return super().forward(seen), torch.zeros_like(seen)


class Wild(nn.Linear):
    def forward(self, seen):
        return super().forward(seen) + torch.nan


class Nobody(nn.Module):
    def forward(self, seen):
        return seen, torch.ones_like(seen)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cpg(Walk(), policy=Rigid(1, 1)), "std must be > 0 everywhere"),
        (lambda: cpg(Walk(), step=0.0), "step must be finite and > 0, got 0.0 in iteration 0"),
        (lambda: cpg(spoiled(horizon=1.0), truncation=1.0), "has a horizon, so it takes no trunc"),
        (lambda: cppo(Walk(), inner_steps=0), "inner_steps must be at least 1"),
        (lambda: cppo(Walk(), learning_rate=math.nan), "learning_rate finite and > 0"),
        (lambda: cppo(Walk(), trust="kl"), r"trust must be SqrtKL\(…\), KL\(…\) or Clip"),
        (lambda: cppo(Walk(), trust=Clip(clip=2.0)), "clip must be between 0 and 1"),
        (lambda: cppo(Walk(), trust=KL(coefficient=0.0)), "coefficient and tolerance"),
        (lambda: cppo(Walk(), trust=SqrtKL(radius=-1.0), trajectories=4), "radius must be finite"),
        (lambda: CTD0(nn.Linear(1, 1), sweeps=0), "at least 1 sweep"),
        (lambda: GaussianLinear(variance=0.0), "variance of a policy must be finite and > 0"),
        (lambda: cpg(Walk(), policy=Nobody()), "the policy has no parameters to train"),
        (
            lambda: cpg(Walk(), critic=Wild(1, 1), trajectories=4),
            "values are not finite: lower its",
        ),
        (
            lambda: cppo(Walk(), learning_rate=1e30, trajectories=4, dt=0.5),
            "no longer finite after iteration 0: take smaller steps",
        ),
    ],
)
def test_what_learners_refuse(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_simulate_wants_to_know_when_to_stop():
    generator = torch.Generator()
    with pytest.raises(UserError, match="no horizon: say `until`"):
        simulate(Walk(), GaussianLinear(), dt=0.1, count=2, generator=generator)
    with pytest.raises(UserError, match="at least one path is needed, got 0"):
        simulate(Walk(), GaussianLinear(), dt=0.1, count=0, generator=generator, until=1.0)


def test_what_a_problem_lacks_is_named():
    class Bare:
        discount = 1.0

    with pytest.raises(UserError, match=r"Bare has no `horizon`: define it \(`class Bare\(Contr"):
        cpg(Bare())
    with pytest.raises(UserError, match="Nameless has no `discount`"):
        cpg(type("Nameless", (), {})())
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (ControlledSDE,), {"discount": 1.0})()
