"""Score as action where the optimum is known: every form of credit, on few and on many steps.

On the line, data N(1, ¼) and reward −(x − 2)² with κ = ½: the best law is N(1.5, ⅛) and the optimum
−.6733. A control linear in x̂0 keeps every step affine, so a learned policy is judged without
sampling, on any grid. On the plane, a mixture of four and a linear reward (arXiv 2502.01819).
"""

from __future__ import annotations

import torch

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import subplots
from scoretune.commands.reproduce.toy_learning import (
    KAPPA,
    LINE,
    PLANE,
    PROCESS,
    REWARDS,
    exact_critic,
    learn,
    method,
    source,
    square,
)
from scoretune.core.conditions import Condition
from scoretune.diffusion.kernels import GDDIM, EulerMaruyama, Kernel, Memoryless
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rl import tilt
from scoretune.rollout import Acting, deterministic, prior, rollout

FORMS = {
    "whole": "reward of the whole path, as DDPO",
    "ratio": "increments of V, likelihood ratios",
    "explicit": "noise on the action, rate q",
    "slope": "∇V where the step arrives",
    "rate": "∇V in continuous time",
    "rate_policy": "the same, the policy's own Jacobian",
    "adjoint": "lean adjoint, no critic",
}
KERNELS: dict[str, Kernel] = {"euler": EulerMaruyama(Memoryless()), "gddim": GDDIM(1.0)}
PLANS = [  # form, steps, jittered or not, kernel of training
    *[(form, steps, True, "euler") for form in FORMS for steps in (10, 25, 50)],
    *[(form, 10, False, "euler") for form in ("ratio", "rate")],
    ("rate", 10, True, "gddim"),
]
SOLVERS = {"ddim": 50, "heun": 50, "dpmpp_2m": 20}  # with so many steps
BY_NOISE = [form for form in FORMS if form != "rate_policy"]  # no control yet: the same as rate
JUDGED, COUNTS, ON_PLANE = (
    (10, 50, 200),
    (10, 30, 100),
    [f for f in FORMS if f not in ("explicit", "slope")],
)
REHEARSED = ("whole", "rate", "adjoint")  # one of each kind of credit, on ten steps


# ------------------------------------------------------------------ cells


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Fine-tuning on the line and on the plane, and the noise of one gradient."""
    size: dict[str, int] = {"updates": 1, "batch": 32} if quick else {}
    rounds = {"rounds": 2} if quick else {}
    made = []
    for seed in range(seeds):
        for form, steps, jitter, kernel in PLANS:
            if quick and (form not in REHEARSED or steps > 10):
                continue
            plan = {"form": form, "steps": steps, "jitter": jitter, "kernel": kernel, "seed": seed}
            name = f"line-{form}-{steps}-{'jittered' if jitter else 'fixed'}-{kernel}-{seed}"
            made.append(Cell(name, on_the_line, plan | size))
        for form in ON_PLANE[:1] if quick else ON_PLANE:
            plan = {"form": form, "seed": seed}
            made.append(Cell(f"plane-{form}-{seed}", on_the_plane, plan | size))
    for form in REHEARSED if quick else BY_NOISE:
        for count in COUNTS[:1] if quick else COUNTS:
            plan = {"form": form, "count": count}
            made.append(Cell(f"noise-{form}-{count}", noise_of_gradient, plan | rounds))
    return made


def on_the_line(
    form: str,
    steps: int,
    jitter: bool,
    kernel: str,
    seed: int,
    updates: int = 60,
    batch: int = 512,
) -> Numbers:
    """Learn with `steps` steps; what the policy is worth on other grids and to the ODE."""
    torch.manual_seed(seed)
    backbone = toy.Controlled(toy.Gaussian(PROCESS), toy.HatControl(1))
    policy = Policy(backbone, KERNELS[kernel])
    learn(policy, form, steps, jitter, seed=seed, updates=updates, batch=batch, rate=0.05)
    policy.kernel = KERNELS["euler"]
    numbers: Numbers = {str(count): exactly(policy, count) for count in JUDGED}
    for solver, count in SOLVERS.items():
        numbers[solver] = by_ode(policy, solver, count)
    return numbers


@torch.no_grad()
def exactly(policy: Policy, count: int) -> dict[str, float]:
    """η, mean, variance and chain KL of `count` affine steps: laws are propagated, not sampled."""
    times, nobody = square(count).double(), Condition.none(count)
    ends = [torch.full((count, 1), end, dtype=torch.float64) for end in (0.0, 1.0)]
    low, high = (policy.transition(x, times[:-1], times[1:], nobody) for x in ends)
    with policy.reference():
        base = [policy.transition(x, times[:-1], times[1:], nobody).mean for x in ends]
    offset, slope = low.mean[:, 0], (high.mean - low.mean)[:, 0]
    push, turn = offset - base[0][:, 0], slope - (base[1] - base[0])[:, 0]
    mean, variance, kl = 0.0, 1.0, 0.0
    rows = torch.stack([slope, offset, push, turn, low.std[:, 0]], 1).tolist()
    for a, b, constant, linear, std in rows:
        kl += ((constant + linear * mean) ** 2 + linear**2 * variance) / (2 * std**2)
        mean, variance = a * mean + b, a * a * variance + std**2
    reward = -((mean - 2) ** 2) - variance
    return {"eta": reward - KAPPA * kl, "mean": mean, "variance": variance, "chain_kl": kl}


def by_ode(policy: Policy, solver: str, count: int) -> dict[str, float]:
    """Mean, variance and reward of `count` steps without noise; they are affine too."""
    ends = torch.tensor([[0.0], [1.0]])
    low, high = deterministic(policy, Condition.none(2), square(count), ends, solver)[:, 0].tolist()
    variance = (high - low) ** 2
    return {"mean": low, "variance": variance, "reward": -((low - 2) ** 2) - variance}


def on_the_plane(form: str, seed: int, updates: int = 150, batch: int = 512) -> Numbers:
    """Learn on 25 jittered steps; η of 16 000 paths of a hundred, and where they end."""
    torch.manual_seed(seed)
    backbone = toy.Controlled(toy.Mixture(PROCESS, PLANE), toy.PerceptronControl(2))
    policy = Policy(backbone, KERNELS["gddim"])
    learn(policy, form, 25, True, seed=seed, updates=updates, batch=batch, rate=0.005)
    generator = torch.Generator().manual_seed(seed)
    paths = min(16_000, 32 * batch)
    noise, nobody = prior(policy, paths, generator), Condition.none(paths)
    path = rollout(
        policy, nobody, square(100), generator, noise, acting=Acting(jitter=True), reference=True
    )
    assert path.chain_kl is not None
    reward, kl = float(REWARDS[2](path.final).mean()), float(path.chain_kl.mean())
    nearest = (path.final[:, None] - PLANE.means.float()).norm(dim=2).argmin(1)
    shares = torch.bincount(nearest, minlength=4) / len(nearest)
    return {
        "eta": reward - KAPPA * kl,
        "reward": reward,
        "chain_kl": kl,
        "shares": shares.tolist(),
        "samples": [[round(v, 3) for v in row] for row in path.final[:400].tolist()],
    }


def noise_of_gradient(form: str, count: int, rounds: int = 80, batch: int = 32) -> Numbers:
    """Mean and deviation, for one path, of ∂η/∂θ of a constant control θ, given the exact V."""
    torch.manual_seed(0)
    backbone = toy.Controlled(toy.Gaussian(PROCESS), toy.HatControl(1))
    policy = Policy(backbone, KERNELS["euler"])
    exact = exact_critic(LINE, REWARDS[1])
    objective, credit = method(form, policy, batch * count, exact)
    paths = source(policy, credit, form, steps=count, jitter=False, batch=batch, parts=1, seed=0)
    table, slopes = policy.parameters()[0], []
    for k in range(rounds):
        loss = objective(paths(k).minibatches[0]).value
        # A unit of θ is two deviations of the data, at every knot.
        slopes.append(-2 * float(torch.autograd.grad(loss, table)[0][:, 0].sum()))
    each = torch.tensor(slopes)
    return {"mean": float(each.mean()), "std": float(each.std()) * batch**0.5}


# ------------------------------------------------------------------ page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What was learned on which grid, how noisy its gradient was, and a picture."""
    line, plane, noise = (
        {name.removeprefix(f"{part}-"): results[name] for name in results if name.startswith(part)}
        for part in ("line", "plane", "noise")
    )
    return {
        "line": _line(by_arm(line), page),
        "noise": _noise(noise, page),
        "plane": _plane(by_arm(plane), page),
    }


def _line(arms: dict[str, list[Numbers]], page: Page) -> Numbers:
    best = float(tilt.optimum(LINE, REWARDS[1], KAPPA))
    page.text(
        f"Data N(1, ¼), reward −(x − 2)², κ = ½: the optimum is {best:.4f}, attained by N(1.5, ⅛). "
        "Each policy is judged by its reward less κ times its chain KL, through Euler–Maruyama on "
        "10, 50 and 200 steps and without sampling; and by its reward through solvers without "
        "noise, where the optimum has −.375. Intervals are of 95 %, over seeds."
    )
    rows, numbers = [], {}
    for name, runs in arms.items():
        form, steps, times, kernel = name.split("-")
        values = [interval([run[str(c)]["eta"] for run in runs]) for c in JUDGED]
        solved = [interval([run[solver]["reward"] for run in runs]) for solver in SOLVERS]
        means = [shown(spread) for spread in values]
        means += [f"{m:.3f}" for m, _, _ in solved]
        rows.append([FORMS[form], f"{steps} {times}, {kernel}", *means])
        columns = [*JUDGED, *SOLVERS]
        numbers[name] = {str(c): list(v) for c, v in zip(columns, values + solved, strict=True)}
    judged = [f"η on {count}" for count in JUDGED]
    judged += [f"{solver}, {count}" for solver, count in SOLVERS.items()]
    page.table(["credit", "trained on", *judged], rows)
    return {"optimum": best, "arms": numbers}


def _noise(cells: dict[str, Numbers], page: Page) -> Numbers:
    page.text(
        "The noise of a gradient: its mean ± its deviation for one path, at the pretrained policy, "
        "with the exact value and for a control that is constant. The exact gradient is 2."
    )
    rows = []
    figure, axes = subplots(size=(8.6, 3.8))
    counts = [count for count in COUNTS if f"whole-{count}" in cells]
    for form in (form for form in BY_NOISE if f"{form}-{counts[0]}" in cells):
        runs, label = [cells[f"{form}-{count}"] for count in counts], FORMS[form]
        rows.append([label, *(f"{run['mean']:.2f} ± {run['std']:.2f}" for run in runs)])
        axes.loglog(counts, [run["std"] for run in runs], marker="o", label=label)
    axes.set(xlabel="steps of a path", ylabel="deviation of one path's gradient")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    page.table(["credit", *(f"{count} steps" for count in counts)], rows)
    page.figure("noise", figure, "deviation of one path's gradient, by the number of steps")
    return cells


def _plane(arms: dict[str, list[Numbers]], page: Page) -> Numbers:
    law, log_z = tilt.tilted(PLANE, REWARDS[2], KAPPA)
    exact = [f"{share:.3f}" for share in law.log_weights.exp().tolist()]
    best = KAPPA * float(log_z)
    page.text(
        f"Four equal modes, reward .3x + .15y, κ = ½: the optimum is {best:.4f}. Trained on 25 "
        "jittered steps of GDDIM and sampled on 100. η is by Monte Carlo, of 16 000 paths."
    )
    rows = [["the exact tilt", f"{best:.3f}", *exact]]
    pen = torch.Generator().manual_seed(0)
    panels = {"pretrained": PLANE.draw(400, pen), "exact tilt": law.draw(400, pen)}
    numbers: Numbers = {}
    for form, runs in arms.items():
        eta = interval([run["eta"] for run in runs])
        shares = [sum(part) / len(runs) for part in zip(*(r["shares"] for r in runs), strict=True)]
        rows.append([FORMS[form], shown(eta), *(f"{s:.3f}" for s in shares)])
        panels[form] = torch.tensor(runs[0]["samples"])
        numbers[form] = {"eta": list(eta), "shares": shares}
    page.table(["credit", "η", *(f"share of mode {k + 1}" for k in range(4))], rows)
    figure, row = subplots(1, len(panels), size=(2.0 * len(panels), 2.2), grid="none")
    for axes, (title, samples) in zip(row, panels.items(), strict=True):
        axes.set(title=title, xticks=[], yticks=[])
        axes.scatter(*samples.T.tolist(), s=2, alpha=0.6)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    page.figure("plane", figure, "samples before, from the exact tilt, and as learned")
    return {"optimum": best, "arms": numbers}
