"""Value networks on noisy states: V(t, x; c), what reward to expect from here.

    V(t, x; c) = c_skip(u) · reward(x̂0) + c_out(u) · F(x, x̂0, u, c),  u = t/horizon
                                                                         (arXiv 2502.01819 §4)

with c_skip(0) = 1 and c_out(0) = 0 at the data end, so V there is the reward itself, exactly. For
a smooth reward the first term is already close to the value (exact for a linear one); F starts at
0 and learns the rest. x̂0 is the policy's own estimate of the data. V is a function of continuous
time: it has never heard of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.errors import UserError, unknown

Skip = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The share u [B] of the noise left -> (c_skip, c_out), [B] each; (1, 0) at u = 0."""


def cos_sin(u: Tensor) -> tuple[Tensor, Tensor]:
    """(cos πu/2, sin πu/2): F counts early, c_out ~ u."""
    return torch.cos(u * math.pi / 2), torch.sin(u * math.pi / 2)


def linear(u: Tensor) -> tuple[Tensor, Tensor]:
    """(1 − u, u)."""
    return 1 - u, u


def cos(u: Tensor) -> tuple[Tensor, Tensor]:
    """(cos πu/2, 1 − cos πu/2): F counts late, c_out ~ u²."""
    skip = torch.cos(u * math.pi / 2)
    return skip, 1 - skip


def none(u: Tensor) -> tuple[Tensor, Tensor]:
    """(0, 1), and (1, 0) at the very end: V = F alone. An ablation: V jumps at the end."""
    ended = (u == 0).to(u.dtype)
    return ended, 1 - ended


SKIPS: dict[str, Skip] = {"cos_sin": cos_sin, "linear": linear, "cos": cos, "none": none}

INPUTS = ("both", "noisy", "denoised")
"""What F sees of a state: (x, x̂0), x or x̂0."""


class Critic(nn.Module):
    """The value function above; `body` is F, an ImageValue, a PointValue or a FeatureValue.

    `body(seen, u, tokens)` gives [B]; `seen` is x and x̂0 side by side, one of them, or, with
    `inputs` None, the features of the policy's own network.
    """

    def __init__(
        self, body: nn.Module, horizon: float, *, skip: str = "cos_sin", inputs: str | None = "both"
    ) -> None:
        super().__init__()
        self.body, self.horizon, self.inputs = body, horizon, inputs
        self.skip = SKIPS[skip]

    def forward(
        self,
        x: Tensor,
        data: Tensor,
        t: Tensor,
        tokens: Tensor,
        guess: Tensor,
        features: Tensor | None = None,
    ) -> Tensor:
        """Values [B] at states x and estimates data [B, *S], times t [B], tokens [B, L, D].

        `guess` [B] is the reward of the decoded x̂0; `features` [B, F] are of the network that
        estimated x̂0, for a critic that reads them.
        """
        noise_left = (t / self.horizon).to(x.dtype)
        skip, out = self.skip(noise_left)
        dtype = next(self.body.parameters()).dtype
        seen = self._seen(x, data, features).to(dtype)
        return skip * guess + out * cast(Tensor, self.body(seen, noise_left.to(dtype), tokens))

    def _seen(self, x: Tensor, data: Tensor, features: Tensor | None) -> Tensor:
        if self.inputs is None:
            if features is None:
                raise ValueError("this critic reads the network's features: give it `features`")
            return features
        if self.inputs == "both":
            return torch.cat([x, data], 1)
        return x if self.inputs == "noisy" else data


class ImageValue(nn.Module):
    """A small convnet on images [B, C, H, W] with the clock and the prompt mixed in; the frames of
    videos [B, C, T, H, W] are channels."""

    def __init__(
        self, channels: int, size: tuple[int, int], token_size: int, width: int = 48
    ) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.clock = nn.Linear(8, width)
        self.ask = PromptPool(token_size, width)
        self.mix = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2 if k == 1 else 1, padding=1) for k in range(3)
        )
        rows, columns = (min(4, (side + 1) // 2) for side in size)
        self.pool = (rows, columns)  # keeps where things are, coarsely
        self.leave = head((rows * columns + 1) * width, width)

    def forward(self, seen: Tensor, noise_left: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.enter(seen.flatten(1, -3))
        context = F.silu(self.clock(phases(noise_left)) + self.ask(tokens))
        for mix, layer in zip(self.mix, self.layers, strict=True):
            scale, shift = mix(context)[:, :, None, None].chunk(2, 1)
            hidden = layer(F.silu(F.group_norm(hidden, 4) * (1 + scale) + shift))
        pooled = F.adaptive_avg_pool2d(F.silu(hidden), self.pool).flatten(1)
        return cast(Tensor, self.leave(torch.cat([pooled, context], 1)).squeeze(1))


class PointValue(nn.Module):
    """A small perceptron on vectors [B, D]."""

    def __init__(self, dimension: int, token_size: int, width: int = 64) -> None:
        super().__init__()
        self.ask = PromptPool(token_size, width)
        self.enter = nn.Linear(dimension + 8, width)
        self.leave = nn.Sequential(nn.SiLU(), *head(width, width))

    def forward(self, seen: Tensor, noise_left: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.enter(torch.cat([seen, phases(noise_left)], 1)) + self.ask(tokens)
        return cast(Tensor, self.leave(hidden).squeeze(1))


class FeatureValue(PointValue):
    """A head on features [B, D] of the policy's own network: no second look at the state.

    They come with the forward pass that estimates x̂0 (`policy.WithFeatures`), which a
    critic needs anyway; channels of a residual stream differ in size, hence the norm.
    """

    def __init__(self, size: int, token_size: int, width: int = 64) -> None:
        super().__init__(size, token_size, width)
        self.norm = nn.LayerNorm(size)

    def forward(self, seen: Tensor, noise_left: Tensor, tokens: Tensor) -> Tensor:
        return super().forward(self.norm(seen), noise_left, tokens)


class PromptPool(nn.Module):
    """A prompt's tokens [B, L, D] as one vector [B, width], by one learned attention query."""

    def __init__(self, token_size: int, width: int) -> None:
        super().__init__()
        self.token_size = token_size
        if token_size:
            self.norm = nn.LayerNorm(token_size)
            self.key, self.value = nn.Linear(token_size, 4), nn.Linear(token_size, width)
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.token_size:
            return tokens.new_zeros(len(tokens), self.width)
        tokens = self.norm(tokens.to(self.norm.weight.dtype))  # a text encoder may be half
        attention = self.key(tokens).softmax(1)  # four heads over the words
        value = self.value(tokens).unflatten(-1, (4, -1))
        return torch.einsum("blh,blhd->bhd", attention, value).flatten(1)


def head(size: int, width: int) -> nn.Sequential:
    """[B, size] -> [B, 1], exactly 0 before training: V starts at its first term."""
    last = nn.Linear(width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(size, width), nn.SiLU(), last)


def phases(noise_left: Tensor) -> Tensor:
    """Eight smooth features [B, 8] of the share of noise left."""
    frequencies = torch.tensor([0.5, 1.0, 2.0, 4.0], device=noise_left.device)
    angle = noise_left[:, None] * math.pi * frequencies
    return torch.cat([angle.sin(), angle.cos()], 1)


def critic_for(
    shape: tuple[int, ...],
    token_size: int,
    horizon: float,
    *,
    width: int = 48,
    skip: str = "cos_sin",
    inputs: str = "both",
    features: int = 0,
) -> Critic:
    """The critic that suits states of this shape: a convnet for images, a perceptron for points.

    With `features` above 0, instead a head on so many features of the policy's own network.
    """
    if skip not in SKIPS:
        raise unknown("skip of the critic", skip, SKIPS)
    if inputs not in INPUTS:
        raise unknown("inputs of the critic", inputs, INPUTS)
    if features and inputs != "both":
        raise UserError(f"a critic on the network's features sees no state: drop inputs={inputs!r}")
    if features:
        return Critic(FeatureValue(features, token_size, width), horizon, skip=skip, inputs=None)
    channels = shape[0] * (2 if inputs == "both" else 1)
    body: nn.Module
    if len(shape) in (3, 4):
        channels *= math.prod(shape[1:-2])
        body = ImageValue(channels, (shape[-2], shape[-1]), token_size, width)
    else:
        body = PointValue(channels, token_size, width)
    return Critic(body, horizon, skip=skip, inputs=inputs)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(G − V)/Var(G): 1 for a perfect critic, 0 for one that knows only the mean."""
    variance = returns.var()
    return float(1 - (returns - values).var() / variance) if float(variance) > 1e-8 else 0.0
