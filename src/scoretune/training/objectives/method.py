"""What an objective says of itself besides its loss: which settings suit it, how it is wired, and
what an update of it costs. Nobody else asks for an objective's kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scoretune.core.config import Hardware, Sampling, Sizes
from scoretune.core.errors import UserError, user_errors
from scoretune.core.reading import memory
from scoretune.core.records import Objective, Source, Stateful
from scoretune.data.prompts import Prompts
from scoretune.diffusion.named import grid, window
from scoretune.diffusion.processes import Process
from scoretune.models.sizes import largest
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.training.credit.base import Credit
from scoretune.training.loop import MEASURED
from scoretune.training.objectives.base import TrustRegion
from scoretune.training.sources.dataset import Dataset
from scoretune.training.sources.on_policy import OnPolicy, References
from scoretune.training.sources.step_choice import Chooser

FIRST_IN_TIME = 1
"""The first step of a path that methods of continuous time learn from: pure noise stands for
nothing of it."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The rest of a configuration that an objective's settings must suit.

    `differentiable`: whether the reward has a gradient, None where that is not known yet.
    `processes`: how many share the work. `new_network`: whether it has learned nothing yet.
    """

    recipe: str
    reward: str
    data: str
    sampling: Sampling
    sizes: Sizes
    hardware: Hardware
    differentiable: bool | None = None
    processes: int = 1
    new_network: bool = False

    @property
    def at_once(self) -> int:
        """States that are looked at with one graph: the device's batch, or a minibatch."""
        return self.hardware.device_batch or self.sizes.minibatch


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a method on rewards is wired from, besides its objective's own settings."""

    policy: Policy
    prompts: Prompts
    reward: Reward
    context: Context
    seed: int


@dataclass(frozen=True, kw_only=True)
class DataSetup:
    """What training a network of one's own is wired from: clean states x0 [n, *S] without
    conditions, `batch` of them an update. `new_network`: whether it has learned nothing yet."""

    policy: Policy
    x0: Tensor
    batch: int
    seed: int
    updates: int
    new_network: bool


class Adaptive(Stateful, Protocol):
    """What changes between two updates besides the weights: a hook whose state is kept."""

    def adapt(self, update: int, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True)
class Method:
    """What the training loop runs; `warm_up` rounds of the source come before the first update."""

    objective: Objective
    source: Source
    adaptive: Adaptive | None = None
    warm_up: int = 0

    @property
    def region(self) -> TrustRegion | None:
        """What bounds how far an update goes, if that is what adapts."""
        return self.adaptive if isinstance(self.adaptive, TrustRegion) else None


@dataclass(frozen=True)
class Paths:
    """The paths of an update as its costs depend on them: `samples` of `steps` steps, `noisy` of
    which may be learned from by a likelihood."""

    samples: int
    steps: int
    noisy: int


@dataclass(frozen=True)
class Costs:
    """What an update asks for beyond drawing its samples; network calls without guidance, which
    doubles them.

    `trained`: steps of each path that are learned from, each by `calls` calls, `frozen` of them
    without a gradient. `references`: steps of each path at which the pretrained policy is asked,
    besides where credit does, `on_paths` if at all of them and what it says stays with the path.
    Of a method on data both are calls an example, `at_once` of which go through the network
    together, with one graph. `credit_calls`: for credit.
    `decodes`: states that are decoded and rewarded for credit, besides the finished samples.
    `credit_graph`: what credit keeps the graph of, `credit_batch` states at once: the network's,
    the decoder's and reward's ("decoder"), "both", or first one and then the other ("either").
    `graph_steps`: so many steps are drawn with one graph through all of them and the decoder, and
    learned from at once.
    `ratios`: whether likelihood ratios are learned from; otherwise a slope waits beside each state.
    `measured`: states of all paths at which a trust region measures the update.
    """

    trained: float
    calls: int = 1
    frozen: int = 0
    at_once: int = 1
    references: float = 0.0
    on_paths: bool = False
    credit_calls: float = 0.0
    decodes: float = 0.0
    credit_graph: Literal["", "network", "decoder", "both", "either"] = ""
    credit_batch: int = 0
    graph_steps: int = 0
    ratios: bool = False
    measured: float = 0.0
    warm_up: int = 0


class Kind(Protocol):
    """What the module of an objective offers; `settings` are its section of the configuration."""

    follows_reward: bool
    """Whether it may follow the gradient of the reward of decoded states."""

    def check(self, settings: Any, context: Context) -> None:
        """Refuse settings that do not fit each other, before anything is loaded."""
        ...

    def costs(self, settings: Any, context: Context, paths: Paths) -> Costs:
        """What one update costs."""
        ...

    def build(self, settings: Any, setup: Setup) -> Method:
        """The objective on a model that is there, and the source that feeds it."""
        ...


class FromData(Kind, Protocol):
    """An objective that a network of one's own can be trained by from nothing."""

    def check_from_data(self, settings: Any, process: Process, *, new_network: bool) -> None:
        """Refuse settings that do not suit a network of one's own under its process."""
        ...

    def build_from_data(self, settings: Any, setup: DataSetup) -> Method:
        """The objective on a network of one's own, and the source that feeds it."""
        ...


# ------------------------------------------------------------------------ what several of them do


def on_policy(
    setup: Setup,
    credit: Credit,
    choose: Chooser,
    *,
    reference: References = "none",
    in_chain: bool = True,
    features: bool = False,
    slopes: bool = False,
) -> OnPolicy:
    """Paths of the policy, credited by a rule; the pretrained policy is asked at `reference`, for
    a KL of the chain or of continuous time. With `slopes` credit follows the reward's gradient back
    from the finished samples. Raises UserError where kernel and grid misfit."""
    context, process = setup.context, setup.policy.backbone.process
    sampling = context.sampling
    with user_errors():
        times = grid(process, sampling)
        window_at = window(sampling, times, process, setup.seed)
    state = math.prod(largest(setup.policy.backbone, setup.prompts.texts).shape)
    check_room(
        setup.policy,
        context.sizes,
        steps=len(times) - 1,
        processes=context.processes,
        state=state,
    )
    return OnPolicy(
        policy=setup.policy,
        prompts=setup.prompts,
        reward=setup.reward,
        reward_name=context.reward,
        credit=credit,
        times=times,
        sizes=context.sizes,
        seed=setup.seed,
        choose=choose,
        reference=reference,
        in_chain=in_chain,
        jitter=sampling.jitter,
        solver=sampling.solver,
        features=features,
        window=window_at,
        shared_noise=sampling.shared_noise,
        integral_end=sampling.integral_end,
        home=torch.device("cpu") if context.hardware.offload_paths else None,
        slopes_at_once=context.at_once if slopes else 0,
    )


def references(kl_weight: float, *, everywhere: bool = False) -> References:
    """Where a KL weight needs the pretrained policy."""
    if not kl_weight:
        return "none"
    return "visited" if everywhere else "chosen"


def unconditional(setup: DataSetup) -> Dataset:
    """States without conditions, all alike likely."""
    x0 = setup.x0
    condition = setup.policy.backbone.encode([""] * len(x0))
    weight = torch.ones(len(x0), device=x0.device)
    return Dataset(x0, condition, weight, setup.batch, setup.seed)


def measured_states(trust_region: float | None, sizes: Sizes, states: float) -> float:
    """At how many of the states that are learned from a trust region measures an update: those of
    whole minibatches."""
    if trust_region is None:
        return 0.0
    return min(states, math.ceil(MEASURED / sizes.minibatch) * sizes.minibatch)


def batch_size(sizes: Sizes) -> int:
    """Examples an update of a method that learns from data."""
    return sizes.batch or sizes.prompts * sizes.group


# ------------------------------------------------------------------------------ checks they share


def check_on_rewards(context: Context, *, ends_alone: bool = False) -> None:
    """What holds for every method on rewards; `ends_alone`: only the ends of paths are credited,
    by likelihood ratios."""
    sizes, hardware = context.sizes, context.hardware
    check_divisible("sizes.prompts", sizes.prompts, context.processes)
    if sizes.batch:
        raise UserError("sizes.batch is of recipes on data: set sizes.prompts and sizes.group")
    if ends_alone:
        return
    if hardware.offload_paths:
        raise UserError(
            f"hardware.offload_paths is for likelihood ratios credited by outcome, and recipe "
            f"{context.recipe!r} asks the network about its paths: leave it out, or lower "
            "sizes.prompts or sizes.group"
        )
    if context.sampling.window.size:
        raise UserError(
            "sampling.window is for likelihood ratios credited by outcome, and recipe "
            f"{context.recipe!r} learns from the whole path: use mix_grpo, flow_grpo or ddpo, or "
            "set sampling.window.size=0"
        )


def check_room(policy: Policy, sizes: Sizes, *, steps: int, processes: int, state: int) -> None:
    """Refuse an update whose paths, states and estimates of so many numbers, no memory of this
    machine holds."""
    samples = sizes.prompts * sizes.group // processes
    needed = 4 * samples * (2 * steps + 1) * state
    room = memory()
    if policy.device.type == "cuda":
        room += torch.cuda.get_device_properties(policy.device).total_memory
    if needed > room:
        raise UserError(
            f"the paths of {samples:,} samples of {steps} steps take {needed >> 30:,} GiB, and "
            f"this machine has {room / 2**30:,.0f}: lower sizes.prompts, sizes.group or "
            "sampling.steps"
        )


def check_divisible(name: str, whole: int, processes: int) -> None:
    """Refuse a number of examples or prompts that processes cannot share equally."""
    if whole % processes:
        raise UserError(
            f"{name}={whole} cannot be shared equally by {processes} processes, each with all "
            f"samples of its prompts: set a multiple of {processes}"
        )


def check_has_noise(context: Context) -> None:
    """Refuse samplers without noise to methods that learn from noisy steps."""
    if context.sampling.solver is not None:
        raise UserError(
            f"sampling.solver={context.sampling.solver} has no noise, hence no likelihood ratios "
            "and no response of a step: use score_as_action with objective.form=rate or explicit, "
            "or set sampling.solver=null"
        )
    if is_still(context.sampling):
        raise UserError(
            "sampling.eta=0 has no noise, which this method learns from: raise it, or use draft, "
            "alignprop or refl, which follow steps of DDIM too"
        )


def is_still(sampling: Sampling) -> bool:
    """Whether the kernel's steps have no noise."""
    return not (sampling.eta or (sampling.noise == "ramp" and sampling.eta_end))


def check_follows_gradient(context: Context) -> None:
    """Refuse a reward without a gradient to methods that follow it."""
    if context.differentiable is False:
        raise UserError(
            f"reward {context.reward!r} has no gradient, and recipe {context.recipe!r} follows "
            "one: choose ddpo, grpo, dpok or reinforce, or score_as_action with "
            "objective.form=ratio (or objective.form=rate with objective.critic.skip=none)"
        )


def check_trust_region(trust_region: float | None, sizes: Sizes) -> None:
    """Refuse a trust region where an update is one step."""
    if trust_region is not None and sizes.accumulate == 0:
        raise UserError(
            "objective.trust_region holds back later steps of an update, and sizes.accumulate=0 "
            "makes only one: set sizes.accumulate=1, or leave the trust region out"
        )


def check_first_time(t_min: float, process: Process) -> None:
    """Refuse a smallest time that the process does not have."""
    if not t_min < process.horizon:
        raise UserError(
            f"objective.t_min={t_min:g} is not below the horizon {process.horizon:g} of {process}: "
            "lower it"
        )


def check_shard(context: Context, setting: str, is_set: bool) -> None:
    """Refuse, with weights spread over processes, what asks the network unequally often in them."""
    if context.hardware.shard and is_set:
        raise UserError(f"hardware.shard does not go with {setting}: leave one of them out")
