"""Score as action where the optimum is known: every form of credit, on few and on many steps.

On the line, data N(1, ¼) and reward −(x − 2)² with κ = ½: the best law is N(1.5, ⅛) and the optimum
−.6733. A control linear in x̂0 keeps every step affine, so a learned policy is judged without
sampling, on any grid. On the plane, a mixture of four and a linear reward (arXiv 2502.01819).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.backbones import toy
from scoretune.batches import Condition, Objective, Trajectory
from scoretune.config import Sizes
from scoretune.credit.adjoint import AdjointCredit
from scoretune.credit.base import Credit, Credited, Judge
from scoretune.credit.critic import CriticCredit, Form
from scoretune.critic import Critic, critic_for
from scoretune.data import Prompts
from scoretune.diffusion.kernels import GDDIM, EulerMaruyama, Kernel, Memoryless
from scoretune.diffusion.processes import VP
from scoretune.objectives.policy_gradient import PolicyGradient
from scoretune.objectives.score_action import ScoreAction
from scoretune.policy import Policy
from scoretune.reproduce.base import Cell, Numbers, Page, interval
from scoretune.rl import tilt
from scoretune.rollout import deterministic, prior, rollout
from scoretune.sources import OnPolicy, any_steps
from scoretune.train import train

PROCESS, KAPPA = VP(), 0.5
LINE = tilt.Mixture.gaussian([1.0], 0.25)
PLANE = tilt.Mixture.of([1.0] * 4, [[x, y] for x in (-1.5, 1.5) for y in (-1.5, 1.5)], 0.1)
REWARDS = {1: tilt.Quadratic.around([2.0], 2.0), 2: tilt.Quadratic.linear([0.3, 0.15])}
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


@dataclass
class Centred:
    """Every step of a path deserves its reward less the batch's mean; κ keeps its meaning."""

    def __call__(
        self, path: Trajectory, rewards: Tensor, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited:
        return Credited(advantage=(rewards - rewards.mean())[b])

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class ExactValue(Critic):
    """The pretrained policy's own value, by its posterior. Its one parameter does nothing."""

    def __init__(self, law: tilt.Mixture, reward: tilt.Quadratic) -> None:
        super().__init__(nn.Identity(), PROCESS.horizon)
        self.law, self.reward, self.idle = law, reward, nn.Parameter(torch.zeros(()))

    def forward(
        self,
        x: Tensor,
        data: Tensor,
        t: Tensor,
        tokens: Tensor,
        guess: Tensor,
        features: Tensor | None = None,
    ) -> Tensor:
        posterior = self.law.to(x).posterior(x, PROCESS.alpha(t), PROCESS.sigma(t))
        return self.reward.mean(posterior) + 0 * self.idle


def square(count: int) -> Tensor:
    """Times (uniform)², short near the data, [count + 1]."""
    return torch.linspace(1, 1e-3**0.5, count + 1) ** 2


def method(
    form: str, policy: Policy, batch: int, critic: Critic | None = None
) -> tuple[Objective, Credit]:
    """The objective and the credit rule of a form; `critic` replaces the learned one."""
    if form == "whole":
        return PolicyGradient(policy, kl_weight=KAPPA), Centred()
    objective = ScoreAction(policy, KAPPA, exploration=0.3)
    if form == "adjoint":
        return objective, AdjointCredit(policy, lean=True, minibatch=batch)
    learned = critic or critic_for(policy.backbone.shape, 0, PROCESS.horizon)
    return objective, CriticCredit(
        learned,
        torch.optim.Adam(learned.parameters(), lr=0.0 if critic else 0.003),
        policy,
        KAPPA,
        cast(Form, form.removesuffix("_policy")),
        minibatch=batch,
        exploration=0.3,
        jacobian="policy" if form.endswith("_policy") else "pretrained",
    )


def source(
    policy: Policy, credit: Credit, steps: int, jitter: bool, batch: int, parts: int, seed: int
) -> OnPolicy:
    """On-policy paths of `steps` steps, `parts` minibatches a round."""
    reward = REWARDS[policy.backbone.shape[0]]
    return OnPolicy(
        policy=policy,
        prompts=Prompts(("",), ("",)),
        reward=lambda x, prompts: reward(x),
        reward_name="quadratic",
        credit=credit,
        times=square(steps),
        sizes=Sizes(prompts=1, group=batch, minibatch=batch * steps // parts),
        seed=seed,
        choose=any_steps(1.0),
        reference=True,
        jitter=jitter,
    )


def learn(
    policy: Policy,
    form: str,
    steps: int,
    jitter: bool,
    *,
    seed: int,
    updates: int,
    batch: int,
    rate: float,
) -> None:
    """Fine-tune by Adam with rate/(1 + update/20), after three rounds for the critic alone."""
    from accelerate import Accelerator

    objective, credit = method(form, policy, batch * steps // 5)
    paths = source(policy, credit, steps, jitter, batch, 4, seed)
    for lap in range(3 if isinstance(credit, CriticCredit) else 0):
        paths(updates + lap)
    optimiser = torch.optim.Adam(policy.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 1 / (1 + k / 20))
    train(
        paths,
        objective,
        optimiser,
        Accelerator(cpu=True),
        updates=range(updates),
        clip_norm=100.0,
        hooks=[lambda update, metrics: decay.step()],
    )


# ------------------------------------------------------------------ cells


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Fine-tuning on the line and on the plane, and the noise of one gradient."""
    size: dict[str, int] = {"updates": 1, "batch": 32} if quick else {}
    rounds = {"rounds": 2} if quick else {}
    found = []
    for seed in range(seeds):
        for form, steps, jitter, kernel in PLANS:
            plan = {"form": form, "steps": steps, "jitter": jitter, "kernel": kernel, "seed": seed}
            name = f"line-{form}-{steps}-{'jittered' if jitter else 'fixed'}-{kernel}-{seed}"
            found.append(Cell(name, on_the_line, plan | size))
        for form in ON_PLANE:
            plan = {"form": form, "seed": seed}
            found.append(Cell(f"plane-{form}-{seed}", on_the_plane, plan | size))
    for form in BY_NOISE:
        for count in COUNTS:
            plan = {"form": form, "count": count}
            found.append(Cell(f"noise-{form}-{count}", noise_of_gradient, plan | rounds))
    return found


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
    found: Numbers = {str(count): exactly(policy, count) for count in JUDGED}
    for solver, count in SOLVERS.items():
        found[solver] = by_ode(policy, solver, count)
    return found


@torch.no_grad()
def exactly(policy: Policy, count: int) -> dict[str, float]:
    """η, mean, variance and path KL of `count` affine steps: laws are propagated, not sampled."""
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
    return {"eta": reward - KAPPA * kl, "mean": mean, "variance": variance, "path_kl": kl}


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
    path = rollout(policy, nobody, square(100), generator, noise, reference=True, jitter=True)
    assert path.kls is not None
    reward, kl = float(REWARDS[2](path.final).mean()), float(path.kls.sum(0).mean())
    nearest = (path.final[:, None] - PLANE.means.float()).norm(dim=2).argmin(1)
    shares = torch.bincount(nearest, minlength=4) / len(nearest)
    return {
        "eta": reward - KAPPA * kl,
        "reward": reward,
        "path_kl": kl,
        "shares": shares.tolist(),
        "samples": [[round(v, 3) for v in row] for row in path.final[:400].tolist()],
    }


def noise_of_gradient(form: str, count: int, rounds: int = 80, batch: int = 32) -> Numbers:
    """Mean and deviation, for one path, of ∂η/∂θ of a constant control θ, given the exact V."""
    torch.manual_seed(0)
    backbone = toy.Controlled(toy.Gaussian(PROCESS), toy.HatControl(1))
    policy = Policy(backbone, KERNELS["euler"])
    exact = ExactValue(LINE, REWARDS[1])
    objective, credit = method(form, policy, batch * count, exact)
    paths = source(policy, credit, count, False, batch, 1, 0)
    table, found = policy.parameters()[0], []
    for k in range(rounds):
        loss = objective(paths(k).minibatches[0]).value
        # A unit of θ is two deviations of the data, at every knot.
        found.append(-2 * float(torch.autograd.grad(loss, table)[0][:, 0].sum()))
    each = torch.tensor(found)
    return {"mean": float(each.mean()), "std": float(each.std()) * batch**0.5}


# ------------------------------------------------------------------ page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What was learned on which grid, how noisy its gradient was, and a picture."""
    line, plane, noise = (
        {name.removeprefix(f"{part}-"): results[name] for name in results if name.startswith(part)}
        for part in ("line", "plane", "noise")
    )
    return {
        "line": _line(_by_arm(line), page),
        "noise": _noise(noise, page),
        "plane": _plane(_by_arm(plane), page),
    }


def _by_arm(results: dict[str, Numbers]) -> dict[str, list[Numbers]]:
    """Runs of all seeds by the name without its seed."""
    arms: dict[str, list[Numbers]] = {}
    for name, numbers in results.items():
        arms.setdefault(name.rpartition("-")[0], []).append(numbers)
    return arms


def _line(arms: dict[str, list[Numbers]], page: Page) -> Numbers:
    best = float(tilt.optimum(LINE, REWARDS[1], KAPPA))
    page.text(
        f"Data N(1, ¼), reward −(x − 2)², κ = ½: the optimum is {best:.4f}, attained by N(1.5, ⅛). "
        "Each policy is judged by its reward less κ times its path KL, through Euler–Maruyama on "
        "10, 50 and 200 steps and without sampling; and by its reward through solvers without "
        "noise, where the optimum has −.375. Intervals are of 95 %, over seeds."
    )
    rows, found = [], {}
    for name, runs in arms.items():
        form, steps, times, kernel = name.split("-")
        values = [interval([run[str(c)]["eta"] for run in runs]) for c in JUDGED]
        solved = [interval([run[solver]["reward"] for run in runs]) for solver in SOLVERS]
        means = [f"{m:.3f} [{low:.3f}, {high:.3f}]" for m, low, high in values]
        means += [f"{m:.3f}" for m, _, _ in solved]
        rows.append([FORMS[form], f"{steps} {times}, {kernel}", *means])
        columns = [*JUDGED, *SOLVERS]
        found[name] = {str(c): list(v) for c, v in zip(columns, values + solved, strict=True)}
    judged = [f"η on {count}" for count in JUDGED]
    judged += [f"{solver}, {count}" for solver, count in SOLVERS.items()]
    page.table(["credit", "trained on", *judged], rows)
    return {"optimum": best, "arms": found}


def _noise(cells: dict[str, Numbers], page: Page) -> Numbers:
    from matplotlib.figure import Figure

    page.text(
        "The noise of a gradient: its mean ± its deviation for one path, at the pretrained policy, "
        "with the exact value and for a control that is constant. The exact gradient is 2."
    )
    rows = []
    figure = Figure(figsize=(8.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for form in BY_NOISE:
        runs, label = [cells[f"{form}-{count}"] for count in COUNTS], FORMS[form]
        rows.append([label, *(f"{run['mean']:.2f} ± {run['std']:.2f}" for run in runs)])
        axes.loglog(COUNTS, [run["std"] for run in runs], marker="o", label=label)
    axes.set_xlabel("steps of a path")
    axes.set_ylabel("deviation of one path's gradient")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    page.table(["credit", *(f"{count} steps" for count in COUNTS)], rows)
    page.figure("noise", figure, "deviation of one path's gradient, by the number of steps")
    return cells


def _plane(arms: dict[str, list[Numbers]], page: Page) -> Numbers:
    from matplotlib.figure import Figure

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
    found: Numbers = {}
    for form, runs in arms.items():
        mean, low, high = interval([run["eta"] for run in runs])
        shares = [sum(part) / len(runs) for part in zip(*(r["shares"] for r in runs), strict=True)]
        rows.append(
            [FORMS[form], f"{mean:.3f} [{low:.3f}, {high:.3f}]", *(f"{s:.3f}" for s in shares)]
        )
        panels[form] = torch.tensor(runs[0]["samples"])
        found[form] = {"eta": [mean, low, high], "shares": shares}
    page.table(["credit", "η", *(f"share of mode {k + 1}" for k in range(4))], rows)
    figure = Figure(figsize=(2.0 * len(panels), 2.2), layout="constrained")
    for k, (title, samples) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), k + 1, title=title, xticks=[], yticks=[])
        x, y = samples.T.tolist()
        axes.scatter(x, y, s=2, alpha=0.6)
        axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
    page.figure("plane", figure, "samples before, from the exact tilt, and as learned")
    return {"optimum": best, "arms": found}
