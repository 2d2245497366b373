"""No public formula of `rl` and `diffusion` takes tensors that do not fit and says nothing.

Every function, constructor and method of the two rooms that has a Tensor among its parameters is
called with good input, and then with one tensor of a wrong shape: a dimension more, or a size of 1
that would broadcast. It must raise ValueError in one line. What may be given in several shapes is
listed with its reason.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import UnionType
from typing import Any

import pytest
import torch
from torch import Tensor

import scoretune.diffusion
import scoretune.rl
from scoretune.diffusion import estimates, kernels, solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP
from scoretune.diffusion.transitions import Transition, Weights
from scoretune.rl import advantage_rate, clipped_surrogate, martingale_loss
from scoretune.rl.tilt import Mixture, Quadratic
from scoretune.shapes import check_rank, check_same_shape, check_shape

B, D, N, K = 3, 2, 4, 5


def rand(*shape: int) -> Tensor:
    return 0.1 + 0.8 * torch.rand(shape)


def state() -> Tensor:
    return rand(B, D)


def estimate() -> Estimate:
    return Estimate(state(), state())


def mixture() -> Mixture:
    return Mixture(rand(B, K).log_softmax(-1), rand(B, K, D), rand(B, K))


def nodes() -> Tensor:
    """[N+1, B], decreasing."""
    return torch.linspace(0.9, 0.1, N + 1)[:, None] - 0.01 * torch.arange(B)


GOOD: dict[str, Callable[[], Any]] = {
    **{name: lambda: rand(B) for name in ("t", "numbers", "eta", "g_sq", "kl_weight", "sigma")},
    **dict.fromkeys(("x", "x0", "eps", "output", "noise", "predicted", "exact", "xi"), state),
    **dict.fromkeys(("value_grad", "action", "mean_action", "reference", "probe"), state),
    **dict.fromkeys(("mean", "other_mean", "std", "other_std", "cap", "logit"), state),
    **dict.fromkeys(("beta", "other_alpha", "other_beta", "other_logit"), state),
    **{name: lambda: rand(B) for name in ("log_prob", "old_log_prob", "advantage", "alpha")},
    **{name: lambda: rand(B) for name in ("covariance_trace", "variance", "curvature")},
    "t_next": lambda: rand(B) / 2,
    "log_snr_step": lambda: rand(B),
    "log_snr_steps": lambda: rand(B),
    "ratio": lambda: rand(B),
    "times": lambda: nodes()[:, 0],
    "nodes": nodes,
    "estimate": estimate,
    "other": lambda: Transition(state(), rand(B, 1)),
    "process": VP,
    "base": VP,
    "prediction": lambda: estimates.v,
    "kernel": lambda: GDDIM(0.7),
    "field": lambda: lambda x, t: Estimate(0.1 * x, 0.2 * x),
    "solver": lambda: "heun",
    "jump": lambda: lambda x, t: 0.1 * x,
    "score": lambda: lambda x: -x,
    "vector": lambda: lambda x: -x,
    "rewards": lambda: rand(B, N),
    "values": lambda: rand(B, N + 1),
    "terminal": lambda: rand(B),
    "dt": lambda: rand(N),
    "clock": lambda: rand(N),
    "features": lambda: rand(B, N + 1, D),
    "fixed": lambda: rand(B, N + 1),
    "tests": lambda: rand(B, N, D),
    "log_weights": lambda: rand(B, K),
    "means": lambda: rand(B, K, D),
    "variances": lambda: rand(B, K),
    "law": mixture,
    "reward": lambda: Quadratic(rand(D), 0.3),
    "clip": lambda: 0.2,
    "decay": lambda: 0.3,
    "snr": lambda: 0.1,
    "t_min": lambda: 1e-3,
    "sigma_data": lambda: 0.5,
    "batch": lambda: B,
}
SPECIAL: dict[str, dict[str, Callable[[], Any]]] = {
    **{f"rl.bounded.beta_{what}": {"alpha": state} for what in ("log_prob", "entropy", "kl")},
    "rl.martingale.martingale_loss": {
        name: lambda: rand(B, N) for name in ("values", "returns_to_go")
    },
    "rl.martingale.drawn_returns": {
        "drawn": lambda: 2,
        "candidates": lambda: N,
        "own": lambda: True,
    },
    "rl.tilt.optimal_value": {"kl_weight": lambda: 0.5, "law": lambda: unbatched()},
    "rl.tilt.optimal_score": {"kl_weight": lambda: 0.5, "law": lambda: unbatched()},
    "rl.tilt.check_levels": {"x": state},
    "diffusion.transitions.Transition": {"std": lambda: rand(B, 1)},
    "diffusion.transitions.Weights": {
        name: lambda: rand(B) for name in ("state", "data", "noise", "std")
    },
    "diffusion.estimates.Estimate": {"data": state},
    "diffusion.theory.gaussian.exact": {name: lambda: rand() for name in ("mean", "variance")},
    "diffusion.solvers.dpm_solver.dpmpp_2m_step": {"previous": lambda: None},
    "diffusion.solvers.dpm_solver.first_order": {"eta": lambda: 0.5},
    "diffusion.solvers.predictor_corrector.langevin_step": {"sigma": lambda: rand(B, 1)},
    "diffusion.solvers.predictor_corrector.langevin_size": {"sigma": lambda: rand(B, 1)},
    "diffusion.theory.contraction.rate": {"eta": lambda: 0.5},
    "diffusion.theory.gaussian.transition": {
        **{name: lambda: 0.5 for name in ("mean", "variance", "eta")},
    },
    "diffusion.matching.consistency.exact_gaussian": {
        name: lambda: 0.5 for name in ("mean", "variance")
    },
    **{
        f"diffusion.solvers.{row.function.__module__.rpartition('.')[2]}.{name}": {"times": nodes}
        for name, row in solvers.SOLVERS.items()
        if name != "rk45" and not isinstance(row.function, solvers.OfEta)
    },
    "diffusion.solvers.base.on_grid": {"times": nodes},
    "diffusion.solvers.base.KernelSampler.__call__": {"times": nodes},
    "diffusion.solvers.stochastic.OfEta.__call__": {"times": nodes},
}
SELVES: dict[str, Callable[[], Any]] = {
    "Transition": lambda: Transition(state(), rand(B, 1)),
    "Weights": lambda: Weights(*(rand(B) for _ in range(4))),
    "Weights.mean": lambda: Weights(*(rand(B) for _ in range(4))).over(state()),
    "Weights.transition": lambda: Weights(*(rand(B) for _ in range(4))).over(state()),
    "Mixture": mixture,
    "Mixture.posterior": lambda: unbatched(),
    "Mixture.diffused": lambda: unbatched(),
    "Quadratic": lambda: Quadratic(rand(D), 0.3),
    "OfEta": lambda: solvers.OfEta(GDDIM),
    "KernelSampler": lambda: solvers.base.KernelSampler(GDDIM(0.7)),
    "EulerMaruyama": lambda: kernels.EulerMaruyama(kernels.Constant(0.7)),
    "Exponential": lambda: kernels.Exponential(kernels.Constant(0.7)),
    "Renoise": lambda: kernels.Renoise(kernels.Posterior(0.5)),
    "GDDIM": lambda: GDDIM(0.7),
    "Posterior": lambda: kernels.Posterior(0.5),
    "DanceSDE": lambda: kernels.DanceSDE(0.5),
}
FREE: dict[str, str] = {
    "diffusion.transitions.Weights": "numbers of any times; `over` fits them to a state",
    "diffusion.transitions.Weights.mean": "numbers that are `over` a state",
    "diffusion.transitions.broadcast(numbers)": "one column of numbers serves all samples",
    "diffusion.transitions.fresh": "noise like one state",
    "diffusion.solvers.base.node_times(nodes)": "one column of times serves all samples",
    "diffusion.solvers.predictor_corrector.langevin_size(sigma)": "one σ serves all samples",
    "diffusion.solvers.predictor_corrector.langevin_step(sigma)": "one σ serves all samples",
    "diffusion.solvers.runge_kutta.rk45": "times of the whole batch",
    "diffusion.matching.consistency.multistep": "times of the whole batch",
    "diffusion.matching.score_matching.log_likelihood(times)": "refused by rank alone",
    "diffusion.paths.jittered": "a grid of the whole batch",
    **{
        f"diffusion.scales.{name}.__call__": "its level is of one of the two times"
        for name in ("Still", "Memoryless", "Constant", "Ramp", "FlowSDE", "CPS")
    },
    "rl.tilt.Mixture.to": "the device and dtype of anything",
    "rl.tilt.Quadratic": "a slope and two numbers",
    "rl.tilt.Quadratic.__call__": "points of any number",
}


def unbatched() -> Mixture:
    return Mixture(rand(K).log_softmax(-1), rand(K, D), rand(K))


def places() -> Iterator[tuple[str, Callable[..., Any], type | None]]:
    """Public functions, constructors of tensors and methods, each with its name and its class."""
    for room in (scoretune.rl, scoretune.diffusion):
        for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            module = importlib.import_module(found.name)
            short = found.name.removeprefix("scoretune.")
            for name, thing in vars(module).items():
                if name.startswith("_") or getattr(thing, "__module__", "") != found.name:
                    continue
                if inspect.isfunction(thing):
                    yield f"{short}.{name}", thing, None
                elif inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):
                    if is_dataclass(thing):
                        yield f"{short}.{name}", thing, None
                    for method, function in vars(thing).items():
                        public = method == "__call__" or not method.startswith("_")
                        if public and inspect.isfunction(function):
                            yield f"{short}.{name}.{method}", function, thing


SHAPED = (Tensor, Estimate)


def tensors_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters that are, or may be, tensors or estimates."""
    parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    return {
        name: hint
        for name, hint in hints.items()
        if name in parameters and any(kind in SHAPED for kind in alternatives(hint))
    }


def alternatives(hint: Any) -> tuple[Any, ...]:
    """A type, and of a union its members."""
    union = typing.get_origin(hint) in (typing.Union, UnionType)
    return typing.get_args(hint) if union else (hint,)


def arguments(place: str, function: Callable[..., Any], owner: type | None) -> dict[str, Any]:
    """Good input of what has no default, and of every tensor."""
    given: dict[str, Any] = {}
    wanted, special = tensors_of(function), SPECIAL.get(place, {})
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self":
            assert owner is not None
            own = SELVES.get(f"{owner.__name__}.{function.__name__}", SELVES.get(owner.__name__))
            assert own is not None, place
            given[name] = own()
        elif name in special:
            given[name] = special[name]()
        elif name in wanted or parameter.default is inspect.Parameter.empty:
            given[name] = GOOD[name]()
    return given


def misshapen(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor with a dimension more, and with sizes of 1 that would broadcast."""
    yield "a dimension more behind", value.unsqueeze(-1)
    yield "a dimension more before", value.unsqueeze(0)
    if value.dim() and len(value) > 1:
        yield "one row", value[:1]
    if value.dim() > 1 and value.shape[-1] > 1:
        yield "one column", value[..., :1]


def wrong(given: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Input with one wrong tensor or estimate: its name, what is wrong, and all of it."""
    for name, value in given.items():
        if not isinstance(value, Tensor | Estimate):
            continue
        parts = [value] if isinstance(value, Tensor) else [value.data, value.noise]
        shape = parts[0].shape
        rest = [other for key, other in given.items() if key != name]
        alone = not any(
            isinstance(other, Estimate) or (isinstance(other, Tensor) and other.shape == shape)
            for other in rest
        )
        for changes in zip(*map(misshapen, parts), strict=True):
            what, changed = changes[0]
            if alone and len(shape) > 1 and changed.shape[0] == shape[0]:
                continue  # the only state: *S is free
            new = changed if isinstance(value, Tensor) else Estimate(changed, changes[1][1])
            yield name, what, {**given, name: new}


def called(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    if "self" in given:
        rest = {name: value for name, value in given.items() if name != "self"}
        return function(given["self"], **rest)
    return function(**given)


def checked() -> list[tuple[str, Callable[..., Any], type | None]]:
    """All that have two tensors which may not fit each other; one alone fits itself."""
    several = []
    for place, function, owner in places():
        own = owner is not None and owner.__name__ in ("Transition", "Weights", "Mixture")
        hints = tensors_of(function)
        count = len(hints) + (Estimate in hints.values()) + own
        if hints and count > 1:
            several.append((place, function, owner))
    return several


def test_no_formula_broadcasts_in_silence():
    silent, loud = [], []
    for place, function, owner in checked():
        if place in FREE:
            continue
        given = arguments(place, function, owner)
        called(function, given)
        for name, what, changed in wrong(given):
            if f"{place}({name})" in FREE:
                continue
            try:
                called(function, changed)
            except ValueError as error:
                if "\n" in str(error) or len(str(error)) > 300:
                    loud.append(f"{place}({name}: {what}): {error}")
            except (RuntimeError, IndexError) as error:
                loud.append(f"{place}({name}: {what}): {type(error).__name__} {error}")
            else:
                silent.append(f"{place}({name}: {what})")
    assert not silent, "\n".join(silent)
    assert not loud, "\n".join(loud)


def test_every_exception_is_of_something_that_is_there():
    known = {place for place, *_ in places()}
    assert {name.partition("(")[0] for name in (*FREE, *SPECIAL)} <= known
    assert len(checked()) > 60


def test_what_used_to_pass():
    with pytest.raises(ValueError, match=r"std \[3\] must have the dimensions of mean \[3, 3\]"):
        Transition(torch.zeros(3, 3), torch.ones(3))  # drew along the wrong axis
    with pytest.raises(ValueError, match=r"advantage \[4, 1\] must have the same shape"):
        clipped_surrogate(torch.zeros(4), torch.zeros(4), torch.ones(4, 1), 0.2)
    with pytest.raises(ValueError, match=r"values \[8, 5\], returns_to_go \[8, 1, 5\] must have"):
        martingale_loss(torch.zeros(8, 5), torch.zeros(8, 1, 5), torch.ones(5))
    with pytest.raises(ValueError, match=r"g_sq \[2, 1\] must be \[4\], one number for each"):
        advantage_rate(*torch.zeros(4, 4, 3), torch.ones(2, 1), 0.1)


def test_checks_name_the_arguments_and_their_shapes():
    with pytest.raises(ValueError, match=r"^a \[2, 3\], b \[3, 2\] must have the same shape$"):
        check_same_shape(a=torch.zeros(2, 3), b=torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"^a \[2\] must be \[3\]$"):
        check_shape((3,), a=torch.zeros(2), b=None)
    with pytest.raises(ValueError, match=r"^a \[2\] must have 2 or more dimensions$"):
        check_rank(2, a=torch.zeros(2))
    with pytest.raises(ValueError, match=r"^a \[2\] must have 2 dimensions$"):
        check_rank(2, 2, a=torch.zeros(2))
