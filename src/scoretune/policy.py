"""A policy: a pretrained network, and the kernel through which it acts.

Acting and judging go through the same door, `transition`, so the likelihood ratio of an unchanged
policy to itself is exactly 1 by construction. The reference is the same network with its adapter
switched off; there is never a second copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition, joined
from scoretune.core.errors import UserError
from scoretune.core.profiling import part
from scoretune.core.records import spans
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Estimate, Prediction
from scoretune.diffusion.kernels import Kernel, Transition
from scoretune.diffusion.processes import Process
from scoretune.diffusion.transitions import wide

Predict = Callable[[Tensor, Tensor, Any], Tensor]
"""A network's output at (x, t, tokens)."""


class Backbone(Protocol):
    """A pretrained generative model, seen as a network on noisy states of a process."""

    @property
    def process(self) -> Process:
        """How data are noised."""

    @property
    def prediction(self) -> Prediction:
        """What the network was trained to output."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one state, *S."""

    @property
    def network(self) -> nn.Module:
        """The part that is fine-tuned."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of the prompts. Done once a rollout, without gradient."""

    def predict(self, x: Tensor, t: Tensor, tokens: Any) -> Tensor:
        """The network's raw output [B, *S] at states x [B, *S] and times t [B]; `tokens` are what
        its own `encode` puts into a condition."""

    def decode(self, x0: Tensor) -> Tensor:
        """Finished states as people see them: for images [B, 3, H, W] in [0, 1]."""

    def embed(self, images: Tensor) -> Tensor:
        """The inverse of `decode`, without gradient: data as clean states [B, *S]."""


@runtime_checkable
class WithFeatures(Backbone, Protocol):
    """A backbone whose own forward pass can feed a critic, which then costs no second network."""

    @property
    def feature_size(self) -> int:
        """F, the number of features of one state."""

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Any) -> tuple[Tensor, Tensor]:
        """The same output as `predict`, and features [B, F] in float32 of the same forward pass.

        Both are differentiable with respect to x and to the network's weights.
        """


@runtime_checkable
class Distilled(Backbone, Protocol):
    """A backbone that guidance was distilled into: its scale is an input of one call."""

    scale: float


@runtime_checkable
class Guiding(Backbone, Protocol):
    """A backbone with a way of its own to put prompted and unprompted outputs together."""

    def guided(self, free: Tensor, bound: Tensor, scale: float) -> Tensor:
        """The output [B, *S] of guidance, of those without and with the prompt."""


@dataclass(frozen=True)
class Deployment:
    """How people sample from a model unless they say otherwise: `name` is what it is, `steps` and
    `guidance` (None: it takes none) what its call defaults to, `times` of N steps are [N+1]."""

    name: str
    steps: int
    guidance: float | None
    times: Callable[[int], Tensor]


@runtime_checkable
class Deployed(Protocol):
    """A backbone that knows how it is sampled from; None where nobody has said so."""

    @property
    def deployment(self) -> Deployment | None: ...


def deployment_of(backbone: Backbone) -> Deployment | None:
    """How a backbone is sampled from unless told otherwise, where that is known."""
    return backbone.deployment if isinstance(backbone, Deployed) else None


@dataclass
class Policy:
    """A backbone acting through a kernel, with classifier-free guidance of scale `guidance`.

    `calls` counts network evaluations, one per state (guidance makes it two), and `decoded` the
    states that were decoded to be rewarded. At most `at_once` states at a time (0: all) go through
    the network, the decoder and the encoders, and it computes in `autocast` where that is given.
    Where a graph is kept, who asks keeps to `at_once` too: else the graphs of all parts wait for
    one backward pass.
    """

    backbone: Backbone
    kernel: Kernel
    guidance: float = 1.0
    calls: int = 0
    decoded: int = 0
    at_once: int = 0
    autocast: torch.dtype | None = None

    def estimate(self, x: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """What the network says about x [B, *S] at t [B]; guidance rides in the same batch."""
        return self._read(x, t, self._ask(self.backbone.predict, x, t, condition))

    def estimate_with_features(
        self, x: Tensor, t: Tensor, condition: Condition
    ) -> tuple[Estimate, Tensor]:
        """`estimate`, and what the network made of the state on the way, [B, F], for a critic."""
        collected: list[Tensor] = []
        look = self._with_features().predict_with_features

        def predict(x: Tensor, t: Tensor, tokens: Any) -> Tensor:
            output, features = look(x, t, tokens)
            collected.append(features)
            return output

        estimate = self._read(x, t, self._ask(predict, x, t, condition))
        asked = collected[:: len(collected) // len([*self._spans(len(x))])]
        rows = (len(x[s]) for s in self._spans(len(x)))
        return estimate, torch.cat([f[-n:] for f, n in zip(asked, rows, strict=True)])

    @torch.no_grad()
    def pretrained(self, x: Tensor, t: Tensor, condition: Condition) -> Estimate:
        """The estimate of the pretrained policy, without gradient."""
        with self.reference():
            return self.estimate(x, t, condition)

    @property
    def has_features(self) -> bool:
        """Whether the network offers a critic features of its own forward pass."""
        return isinstance(self.backbone, WithFeatures)

    @property
    def feature_size(self) -> int:
        """F, the number of features of one state. Raises UserError where there are none."""
        return self._with_features().feature_size

    def _with_features(self) -> WithFeatures:
        if not isinstance(self.backbone, WithFeatures):
            raise UserError(
                f"{type(self.backbone).__name__} offers no features to share: set "
                "objective.critic.body=small"
            )
        return self.backbone

    def _ask(self, predict: Predict, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        guided = self.guidance != 1.0
        if guided and condition.null is None:
            raise UserError("guidance needs an empty prompt, which this model has not: use 1.0")
        self.calls += (1 + guided * (1 if condition.blind is None else 2)) * len(x)
        with part("network"):
            parts = [
                self._guided(predict, x[s], t[s], condition.take(s)) for s in self._spans(len(x))
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def at_most(self, rows: int) -> int:
        """So many rows at once, or as many as the device may hold if they are fewer."""
        return min(rows, self.at_once or rows)

    def _spans(self, rows: int) -> Iterator[slice]:
        return spans(rows, self.at_most(max(rows, 1)))

    def encode(self, prompts: Sequence[str]) -> Condition:
        """`Backbone.encode`, each text once, at most `at_once` of them at a time."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
        texts = list(numbers)
        encode = self.backbone.encode
        with part("prompts"):
            parts = [encode(texts[s]) for s in self._spans(len(texts))] or [encode(texts)]
        condition = parts[0] if len(parts) == 1 else Condition.joined(parts)
        if len(texts) == len(prompts):
            return condition
        rows = [numbers[prompt] for prompt in prompts]
        return condition.take(torch.tensor(rows, device=condition.device))

    def decode(self, x0: Tensor) -> Tensor:
        """`Backbone.decode`, counted; at most `at_once` states at a time."""
        self.decoded += len(x0)
        with part("decode"):
            return self._in_parts(self.backbone.decode, x0)

    def embed(self, images: Tensor) -> Tensor:
        """`Backbone.embed`, at most `at_once` images at a time."""
        return self._in_parts(self.backbone.embed, images)

    def _in_parts(self, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        parts = [change(x[s]) for s in self._spans(len(x))] or [change(x)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _guided(self, predict: Predict, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        tokens = condition.tokens
        with self._precision(x.device):
            if condition.null is None or self.guidance == 1.0:
                return predict(x, t, tokens)
            twins = condition.twins
            if condition.in_one_batch:
                all_of_it, count = joined([*twins, tokens]), len(twins) + 1
                output = predict(x.repeat(count, *[1] * (x.dim() - 1)), t.repeat(count), all_of_it)
                *blind, free, bound = wide(output).chunk(count)
            else:  # texts of two lengths that no mask tells apart
                bound = wide(predict(x, t, tokens))
                *blind, free = (wide(predict(x, t, twin)) for twin in twins)
        if isinstance(self.backbone, Guiding):
            return self.backbone.guided(free, bound, self.guidance)
        guided = free + self.guidance * (bound - free)
        return (
            guided_by_picture(guided, free, blind[0], condition.image_guidance) if blind else guided
        )

    def predict(self, x: Tensor, t: Tensor, tokens: Any) -> Tensor:
        """The network's raw output [B, *S] in the policy's precision; counts no calls."""
        with part("network"), self._precision(x.device):
            return self.backbone.predict(x, t, tokens)

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.autocast, enabled=self.autocast is not None)

    def _read(self, x: Tensor, t: Tensor, output: Tensor) -> Estimate:
        backbone = self.backbone
        return estimates.read(backbone.process, backbone.prediction, t, x, wide(output))

    def transition(self, x: Tensor, t: Tensor, t_next: Tensor, condition: Condition) -> Transition:
        """The law of the next state: the one door for acting, judging and learning."""
        return self.move(x, self.estimate(x, t, condition), t, t_next)

    def move(self, x: Tensor, estimate: Estimate, t: Tensor, t_next: Tensor) -> Transition:
        """The law of the next state once the network has spoken."""
        return self.kernel(self.backbone.process, x, estimate, t, t_next)

    def field(self, condition: Condition) -> Callable[[Tensor, Tensor], Estimate]:
        """The policy as a deterministic solver sees it: (x, t) -> Estimate."""
        return lambda x, t: self.estimate(x, t, condition)

    @contextmanager
    def under(self, guidance: float) -> Iterator[None]:
        """Within this context guidance has another scale."""
        before, self.guidance = self.guidance, guidance
        try:
            yield
        finally:
            self.guidance = before

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within this context what is asked and decoded does not count, as measuring does not."""
        before = self.calls, self.decoded
        try:
            yield
        finally:
            self.calls, self.decoded = before

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.backbone.network.parameters()).device

    def parameters(self) -> list[nn.Parameter]:
        """What training may change."""
        return [p for p in self.backbone.network.parameters() if p.requires_grad]

    @property
    def has_reference(self) -> bool:
        """Whether the pretrained policy is still there: not so under full fine-tuning."""
        return bool(adapter_layers(self.backbone.network))

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context, which may be nested, the policy is the pretrained one."""
        layers = adapter_layers(self.backbone.network)
        if not layers:
            raise UserError(
                "a reference policy needs an adapter: full fine-tuning overwrites the pretrained "
                "weights; set model.rank above 0, or every KL weight to 0"
            )
        with switched(layers, [True] * len(layers)):
            yield


def guided_by_picture(guided: Tensor, free: Tensor, blind: Tensor, scale: float) -> Tensor:
    """e(∅, ∅) + s_I (e(c_I, ∅) − e(∅, ∅)) + s_T (e(c_I, c_T) − e(c_I, ∅)), arXiv 2211.09800 eq. 3,
    of `guided` by the text, `free` of it and `blind` to the picture as well."""
    return guided + (scale - 1) * (free - blind)


class Adapter(nn.Module):
    """A part added to a frozen network that can be switched off, by the names of a peft layer."""

    def __init__(self) -> None:
        super().__init__()
        self.disable_adapters = False

    def enable_adapters(self, enabled: bool) -> None:
        """Off: the network is the pretrained one."""
        self.disable_adapters = not enabled


@contextmanager
def switched(layers: Sequence[Any], off: Sequence[bool]) -> Iterator[None]:
    """Within this context the adapters of these layers are off where `off` says so, else on."""
    was_off = [layer.disable_adapters for layer in layers]
    _switch(layers, off)
    try:
        yield
    finally:
        _switch(layers, was_off)


def _switch(layers: Sequence[Any], off: Sequence[bool]) -> None:
    for layer, wanted in zip(layers, off, strict=True):
        if layer.disable_adapters != wanted:
            layer.enable_adapters(not wanted)


def adapter_layers(network: nn.Module) -> list[Any]:
    """The layers that carry an adapter: LoRA's, where peft was needed, or a toy's own."""
    import sys

    tuners = sys.modules.get("peft.tuners.tuners_utils")
    kinds = (Adapter,) if tuners is None else (Adapter, tuners.BaseTunerLayer)
    return [module for module in network.modules() if isinstance(module, kinds)]
