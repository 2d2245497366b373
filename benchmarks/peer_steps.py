"""A step and its log-probability beside ddpo-pytorch's `ddim_step_with_logprob`.

Both move [4, 4, 64, 64] latents by DDIM with η = 1 from a fixed output of a network, along the
same 50 times of Stable Diffusion's table. `act` draws the next state and tells its log-probability,
`judge` tells that of a given one and takes its gradient with respect to the network's output. The
first is also measured with a larger state. Theirs is loaded from a file that is not part of this
repository, with one import line changed for today's diffusers.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.diffusion import estimates
from scoretune.diffusion.grids import diffusers_times
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import Tabulated
from solvers import paired_ratio

STEPS = 50
SHAPES = {"latents": (4, 4, 64, 64), "wide": (4, 64, 64, 64)}
OLD, NEW = (
    "from diffusers.utils import randn_tensor",
    "from diffusers.utils.torch_utils import randn_tensor",
)


def step_costs(file: Path, pairs: int) -> dict[str, list[float]]:
    """How many times as fast our step is, pair by pair of whole paths, by what is done."""
    torch.set_num_threads(1)
    theirs, scheduler, process = loaded(file), _scheduler(), Tabulated.scaled_linear()
    times = diffusers_times(process, STEPS)
    costs = {}
    for name, shape in SHAPES.items():
        x, output, noise = (torch.randn(shape) for _ in range(3))
        check(theirs, scheduler, process, times, x, output)
        for what in ("act", "judge"):
            ours_, theirs_ = (
                _ours(process, times, x, output, noise, what),
                _theirs(theirs, scheduler, x, output, noise, what),
            )
            costs[f"{what}, {name}"] = [1 / ratio for ratio in paired_ratio(ours_, theirs_, pairs)]
    return costs


def loaded(file: Path) -> Callable[..., Any]:
    """Their function."""
    with tempfile.TemporaryDirectory() as folder:
        patched = Path(folder) / "ddim_with_logprob.py"
        patched.write_text(file.read_text().replace(OLD, NEW))
        spec = importlib.util.spec_from_file_location("ddim_with_logprob", patched)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.ddim_step_with_logprob


def _scheduler() -> Any:
    from peer_model import scheduler as plain

    scheduler = plain()
    scheduler.set_timesteps(STEPS)
    return scheduler


def _ours(
    process: Tabulated, times: Tensor, x: Tensor, output: Tensor, noise: Tensor, what: str
) -> Callable[[], None]:
    nodes, kernel = times[:, None].expand(-1, len(x)), GDDIM(1.0)
    generator = torch.Generator().manual_seed(0)

    def step(k: int, output: Tensor) -> Any:
        t, t_next = nodes[k], nodes[k + 1]
        return kernel(process, x, estimates.read(process, estimates.noise, t, x, output), t, t_next)

    def act() -> None:  # as `rollout.act_along` does it
        with torch.no_grad():
            for k, weights in enumerate(kernel.weights(process, nodes[:-1], nodes[1:]).each()):
                estimate = estimates.read(process, estimates.noise, nodes[k], x, output)
                move = weights.over(x).transition(x, estimate)
                move.log_prob(move.draw(generator))

    def judge() -> None:
        for k in range(STEPS):
            predicted = output.clone().requires_grad_()
            step(k, predicted).log_prob(noise).sum().backward()

    return act if what == "act" else judge


def _theirs(
    function: Callable[..., Any],
    scheduler: Any,
    x: Tensor,
    output: Tensor,
    noise: Tensor,
    what: str,
) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    steps = [t.expand(len(x)) for t in scheduler.timesteps]

    def act() -> None:
        with torch.no_grad():
            for t in steps:
                function(scheduler, output, t, x, eta=1.0, generator=generator)

    def judge() -> None:
        for t in steps:
            predicted = output.clone().requires_grad_()
            function(scheduler, predicted, t, x, eta=1.0, prev_sample=noise)[1].sum().backward()

    return act if what == "act" else judge


def check(
    function: Any, scheduler: Any, process: Tabulated, times: Tensor, x: Tensor, output: Tensor
) -> None:
    """The two are the same step: the log-probability of one state, as a mean over dimensions."""
    t = times[3].expand(len(x)), times[4].expand(len(x))
    move = GDDIM(1.0)(process, x, estimates.read(process, estimates.noise, t[0], x, output), *t)
    state = move.draw(torch.Generator().manual_seed(0))
    log_prob = function(
        scheduler, output, scheduler.timesteps[3].expand(len(x)), x, eta=1.0, prev_sample=state
    )[1]
    torch.testing.assert_close(move.log_prob(state) / x[0].numel(), log_prob, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    for name, ratios in step_costs(Path(sys.argv[1]), 15).items():
        ratios.sort()
        print(name, [round(r, 2) for r in (ratios[0], ratios[len(ratios) // 2], ratios[-1])])
