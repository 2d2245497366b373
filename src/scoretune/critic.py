"""Value networks on noisy states: V(t, x; c), what reward to expect from here.

    V(t, x; c) = c_skip(t) · reward(x̂0) + c_out(t) · F(x, x̂0, t, c)          (arXiv 2502.01819 §4)

with c_skip(0) = 1 and c_out(0) = 0 at the data end, so V there is the reward itself, exactly. For
a smooth reward the first term is already close to the value (exact for a linear one); F learns the
rest. x̂0 is the policy's own estimate of the data.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def skip_weights(u: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) = (cos πu/2, sin πu/2) at the share u = t/horizon of the noise left, [B]."""
    return torch.cos(u * math.pi / 2), torch.sin(u * math.pi / 2)


class Critic(nn.Module):
    """The value function above; `body` is F, an ImageValue or a PointValue."""

    def __init__(self, body: nn.Module, horizon: float) -> None:
        super().__init__()
        self.body, self.horizon = body, horizon

    def forward(self, x: Tensor, data: Tensor, t: Tensor, tokens: Tensor, guess: Tensor) -> Tensor:
        """Values [B] at states x and estimates data [B, *S], times t [B], tokens [B, L, D].

        `guess` [B] is the reward of the decoded x̂0.
        """
        share = t / self.horizon
        skip, out = skip_weights(share)
        return skip * guess + out * cast(Tensor, self.body(x, data, share, tokens))


class ImageValue(nn.Module):
    """A small convnet on (x, x̂0) [B, C, H, W] with the clock and the prompt mixed in."""

    def __init__(self, channels: int, token_size: int, width: int = 48) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.clock = nn.Linear(8, width)
        self.ask = PromptPool(token_size, width)
        self.mix = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2 if k == 1 else 1, padding=1) for k in range(3)
        )
        self.leave = nn.Sequential(nn.LazyLinear(width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(cast(nn.Linear, self.leave[2]).weight)

    def forward(self, x: Tensor, data: Tensor, share: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.enter(torch.cat([x, data], 1))
        told = F.silu(self.clock(phases(share)) + self.ask(tokens))
        for mix, layer in zip(self.mix, self.layers, strict=True):
            scale, shift = mix(told)[:, :, None, None].chunk(2, 1)
            hidden = layer(F.silu(F.group_norm(hidden, 4) * (1 + scale) + shift))
        pooled = F.adaptive_avg_pool2d(F.silu(hidden), min(4, hidden.shape[-1])).flatten(1)
        return cast(Tensor, self.leave(torch.cat([pooled, told], 1)).squeeze(1))


class PointValue(nn.Module):
    """A small perceptron on (x, x̂0) [B, D] for points."""

    def __init__(self, dimension: int, token_size: int, width: int = 64) -> None:
        super().__init__()
        self.ask = PromptPool(token_size, width)
        self.enter = nn.Linear(2 * dimension + 8, width)
        self.leave = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor, data: Tensor, share: Tensor, tokens: Tensor) -> Tensor:
        hidden = self.enter(torch.cat([x, data, phases(share)], 1)) + self.ask(tokens)
        return cast(Tensor, self.leave(hidden).squeeze(1))


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
        tokens = self.norm(tokens)
        attention = self.key(tokens).softmax(1)  # four heads over the words
        value = self.value(tokens).unflatten(-1, (4, -1))
        return torch.einsum("blh,blhd->bhd", attention, value).flatten(1)


def phases(share: Tensor) -> Tensor:
    """Eight smooth features [B, 8] of the share of noise left."""
    angle = share[:, None] * math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0], device=share.device)
    return torch.cat([angle.sin(), angle.cos()], 1)


def critic_for(shape: tuple[int, ...], token_size: int, horizon: float, width: int = 48) -> Critic:
    """The critic that suits states of this shape: a convnet for images, a perceptron for points."""
    body: nn.Module
    body = (
        ImageValue(shape[0], token_size, width)
        if len(shape) == 3
        else PointValue(math.prod(shape), token_size, width)
    )
    if isinstance(body, ImageValue):  # lets LazyLinear see its input size once
        probe = torch.zeros(1, *shape)
        body(probe, probe, torch.zeros(1), torch.zeros(1, 1, token_size))
    return Critic(body, horizon)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 − Var(G − V)/Var(G): 1 for a perfect critic, 0 for one that knows only the mean."""
    spread = returns.var()
    return float(1 - (returns - values).var() / spread) if float(spread) > 1e-8 else 0.0
