"""The reward's own gradient through a rollout: DRaFT-K and AlignProp with the graph kept.

    maximise  E r(x_N),   x_{k+1} = m_k(x_k, x̂_θ(x_k)) + c_k ξ_k,   θ fixed before the last K steps

(arXiv 2309.17400 eq. 3; with a random K, arXiv 2310.03739). One network evaluation a step, one
backward pass through all of them. `credit.adjoint` finds the same gradient with one step's graph in
memory at a time, for one more evaluation of every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.core.records import Loss, Starts
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.weighted import reward_metrics, scored
from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.credit.base import Credit
from scoretune.training.credit.reward_gradient import RewardSlope
from scoretune.training.objectives import method
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.differentiable import Differentiable
from scoretune.training.sources.step_choice import Chooser, last_steps, one_of_last


@dataclass(frozen=True)
class Direct:
    """Minus the mean reward of where paths end that begin at `batches.Starts`."""

    policy: Policy
    reward: Reward
    reward_name: str

    def __call__(self, starts: Starts) -> Loss:
        final, rows = self._follow(starts)
        prompts = [starts.prompts[i] for i in rows.tolist()]
        images = self.policy.decode(final)
        scores = scored(self.reward, self.reward_name, images, prompts)
        return Loss(-scores.total.mean(), reward_metrics(scores))

    def _follow(self, starts: Starts) -> tuple[Tensor, Tensor]:
        """Where the paths end [B, *S], and whose they are, [B]: the longest come first."""
        policy, nodes = self.policy, starts.nodes
        rows = torch.zeros(0, dtype=torch.long, device=starts.x.device)
        x = starts.x[:0]
        for k in range(int(starts.first.min()), nodes.shape[1] - 1):
            new = (starts.first == k).nonzero()[:, 0]
            rows, x = torch.cat([rows, new]), torch.cat([x, starts.x[new]])
            t, t_next = nodes[rows, k], nodes[rows, k + 1]
            estimate = policy.estimate(x, t, starts.condition.take(rows))
            x = policy.move(x, estimate, t, t_next).draw_with(starts.noise[rows, k])
        return x, rows


# ------------------------------------------------------------------------------------- the method

follows_reward = True


def check(settings: config.Direct, context: Context) -> None:
    method.check_on_rewards(context)
    method.check_follows_gradient(context)
    _check_sampler(settings, context)
    if settings.graph == "kept" and not _may_keep_graph(settings, context):
        raise UserError(
            "objective.graph=kept knows no KL, and makes one step of the optimiser an "
            "update: set objective.kl_weight=0 and sizes.accumulate=0, or objective.graph=steps"
        )
    uneven = settings.through == "steps" and settings.random
    method.check_shard(context, "objective.random", uneven)


def _check_sampler(settings: config.Direct, context: Context) -> None:
    if context.sampling.solver is not None:
        raise UserError(
            f"sampling.solver={context.sampling.solver} has no noise, hence no kernel to follow: "
            "set sampling.solver=null, and sampling.eta=0 for steps of DDIM"
        )
    if settings.kl_weight and method.is_still(context.sampling):
        raise UserError(
            "sampling.eta=0 is a chain without noise, which has no KL to another: set "
            "objective.kl_weight=0, or raise sampling.eta"
        )


def build(settings: config.Direct, setup: Setup) -> Method:
    credit, choose = _credit(settings, setup)
    reference = method.references(settings.kl_weight)
    kept = keeps_graph(settings, setup.context)
    slopes = settings.through == "steps" and not kept
    paths = method.on_policy(setup, credit, choose, reference=reference, slopes=slopes)
    if kept:
        objective = Direct(setup.policy, setup.reward, setup.context.reward)
        return Method(objective, Differentiable(paths, settings.last, settings.random))
    return Method(ScoreAction(setup.policy, settings.kl_weight), paths)


def costs(settings: config.Direct, context: Context, paths: Paths) -> Costs:
    most = min(settings.last, paths.steps)
    batch = min(context.at_once, paths.samples)
    if settings.through == "estimate":
        references = float(settings.kl_weight > 0)
        return Costs(
            1,
            references=references,
            decodes=paths.samples,
            credit_graph="decoder",
            credit_batch=batch,
        )
    trained = (1 + most) / 2 if settings.random else most
    if keeps_graph(settings, context):
        return Costs(trained, graph_steps=most)
    return Costs(
        trained,
        references=float(settings.kl_weight > 0),  # where the way back ends
        credit_calls=paths.samples * (trained - 1) * (2 if settings.kl_weight else 1),
        credit_graph="either",
        credit_batch=batch,
    )


def _credit(settings: config.Direct, setup: Setup) -> tuple[Credit, Chooser]:
    at_once = setup.context.at_once
    if settings.through == "estimate":
        return RewardSlope(at_once), one_of_last(settings.last)
    credit = AdjointCredit(setup.policy, kl_weight=settings.kl_weight, at_once=at_once)
    return credit, last_steps(settings.last, settings.random)


def keeps_graph(settings: config.Direct, context: Context) -> bool:
    """Whether the last steps are followed with one graph, and not with one step's at a time."""
    wanted = settings.graph == "kept" or (
        settings.graph == "auto"
        and not context.hardware.checkpointing
        and _may_keep_graph(settings, context)
    )
    return wanted and settings.through == "steps"


def _may_keep_graph(settings: config.Direct, context: Context) -> bool:
    return not settings.kl_weight and context.sizes.accumulate == 0
