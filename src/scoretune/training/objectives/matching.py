"""Matching: predict what the network should have said about noised data (denoising score matching).

    E_t w ‖output − target‖², with the target of whatever the network predicts

Pre-training, supervised fine-tuning, and reward-weighted regression when examples carry weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoretune.core import config
from scoretune.core.conditions import Tokens
from scoretune.core.errors import UserError, unknown, user_errors
from scoretune.core.records import Examples, Loss
from scoretune.data.images import read_pictures
from scoretune.diffusion import estimates
from scoretune.diffusion.matching import score_matching, weightings
from scoretune.diffusion.matching.weightings import Times, TimesName, Weight, WeightName
from scoretune.diffusion.processes import Process, expand
from scoretune.policy import Policy
from scoretune.training.objectives import method
from scoretune.training.objectives.base import with_dropped_prompts
from scoretune.training.objectives.method import Context, Costs, DataSetup, Method, Paths, Setup
from scoretune.training.sources.dataset import Dataset, encoded

Form: TypeAlias = Literal["denoising", "sliced", "implicit"]
Drawn: TypeAlias = tuple[Tensor, Tensor]  # x0 and ε


@dataclass(frozen=True)
class Matching:
    """Weighted squared error of the network's own prediction, a mean over dimensions.

    `weight` names a weight on ‖ε̂ − ε‖² ("own": 1 on the network's own output), and `times` a law of
    t on [t_min, horizon]; either may be one's own function (`diffusion.matching.weightings`). With
    `loss` "sliced" or "implicit" nothing is compared with the noise that was drawn: the same
    gradient in expectation, from derivatives of the network with respect to its input. `dropout` is
    the share of conditions that are replaced by the empty one, for classifier-free guidance (arXiv
    2207.12598).
    """

    policy: Policy
    t_min: float = 1e-3
    weight: WeightName | Literal["own"] | Weight = "own"
    times: TimesName | Times = "uniform"
    loss: Form = "denoising"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.weight, str) and self.weight not in ("own", *weightings.WEIGHTS):
            raise unknown("matching weight", self.weight, ["own", *weightings.WEIGHTS])
        if isinstance(self.times, str) and self.times not in weightings.TIMES:
            raise unknown("law of matching times", self.times, weightings.TIMES)
        if self.loss not in ("denoising", "sliced", "implicit"):
            raise unknown("matching loss", self.loss, ["denoising", "sliced", "implicit"])
        if not 0 <= self.dropout < 1:
            raise UserError(f"matching dropout must lie in [0, 1), got {self.dropout:g}")

    def __call__(self, examples: Examples) -> Loss:
        x0, process = examples.x0, self.policy.backbone.process
        share, eps = examples.share, examples.noise
        if share is None:
            share = torch.rand(len(x0), device=x0.device)
        law = weightings.TIMES[self.times] if isinstance(self.times, str) else self.times
        t, factor = law(process, share, self.t_min)
        if eps is None:
            eps = torch.randn_like(x0)
        tokens = with_dropped_prompts(examples.condition, examples.coin, self.dropout)
        x = estimates.perturb(process, t, x0, eps)
        self.policy.calls += len(x)
        error = self._output_error if self.loss == "denoising" else self._score_error
        each = factor * error(x, t, tokens, (x0, eps))
        return Loss((examples.weight * each).mean(), {"matching": float(each.detach().mean())})

    def _output_error(self, x: Tensor, t: Tensor, tokens: Tokens, drawn: Drawn) -> Tensor:
        """The weighted squared error of the output, [B]: what the network predicts is compared as
        it is, for a conversion to ε would multiply by infinity near either end of time."""
        backbone = self.policy.backbone
        output = self.policy.predict(x, t, tokens)
        goal = estimates.target(backbone.process, backbone.prediction, t, *drawn)
        error = ((output.float() - goal) ** 2).flatten(1).mean(1)
        weight = self._weight()
        if weight is None:
            return error
        return weightings.on_output(weight, backbone.process, backbone.prediction, t) * error

    def _score_error(self, x: Tensor, t: Tensor, tokens: Tokens, drawn: Drawn) -> Tensor:
        """wσ²(‖ŝ‖² + 2∇·ŝ), [B], a mean over dimensions: the error above less a constant."""
        backbone = self.policy.backbone
        process, prediction = backbone.process, backbone.prediction
        sigma = process.sigma(t)

        def score(at: Tensor) -> Tensor:
            output = self.policy.predict(at, t, tokens).float()
            noise = estimates.read(process, prediction, t, at, output).noise
            return -noise / expand(sigma, noise)

        form = score_matching.implicit if self.loss == "implicit" else score_matching.sliced
        weight = self._weight() or weightings.Unit(prediction)
        on_noise = weight(process, weightings.with_signal(process, t))
        with sdpa_kernel(SDPBackend.MATH):  # other kernels of attention have no second derivative
            return on_noise * sigma**2 * form(score, x) / x[0].numel()

    def _weight(self) -> Weight | None:
        """The weight on ε's error; None for 1 on the output's."""
        if not isinstance(self.weight, str):
            return self.weight
        return None if self.weight == "own" else weightings.WEIGHTS[self.weight]


# ------------------------------------------------------------------------------------- the method

follows_reward = False


def check(settings: config.Matching, context: Context) -> None:
    sizes = context.sizes
    name = "sizes.batch" if sizes.batch else "sizes.prompts × sizes.group"
    method.check_divisible(name, method.batch_size(sizes), context.processes)
    derives = settings.loss != "denoising"
    method.check_shard(context, "objective.loss other than denoising", derives)


def build(settings: config.Matching, setup: Setup) -> Method:
    """Pictures and captions, for a model that is there."""
    policy = setup.policy
    images, captions = read_pictures(setup.context.data, setup.seed)
    x0, condition = encoded(policy, images, captions)
    batch = method.batch_size(setup.context.sizes)
    source = Dataset(x0, condition, torch.ones(len(x0)), batch, setup.seed, draws=True)
    return Method(_loss(settings, policy), source)


def check_from_data(settings: config.Matching, process: Process, *, new_network: bool) -> None:
    if settings.dropout:
        raise UserError(
            f"objective.dropout={settings.dropout:g} does not suit a network of one's own: "
            "there are no prompts; leave it out"
        )
    method.check_first_time(settings.t_min, process)
    with user_errors(f"objective.times={settings.times}"):
        weightings.TIMES[settings.times](process, torch.tensor([0.2, 0.8]), settings.t_min)


def build_from_data(settings: config.Matching, setup: DataSetup) -> Method:
    """States without captions, for a network of one's own."""
    return Method(_loss(settings, setup.policy), method.unconditional(setup))


def costs(settings: config.Matching, context: Context, paths: Paths) -> Costs:
    return Costs(1)


def _loss(settings: config.Matching, policy: Policy) -> Matching:
    return Matching(policy, **settings.model_dump(exclude={"kind"}))
