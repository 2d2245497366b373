"""Matching: predict what the network should have said about noised data (denoising score matching).

    E_t w ‖output − target‖², with the target of whatever the network predicts

Pre-training, supervised fine-tuning, and reward-weighted regression when examples carry weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scoretune.batches import Examples, Loss
from scoretune.diffusion import estimates
from scoretune.policy import Policy


@dataclass(frozen=True)
class Matching:
    """Weighted squared error in the network's own prediction, t uniform on [t_min, horizon]."""

    policy: Policy
    t_min: float = 1e-3

    def __call__(self, examples: Examples) -> Loss:
        backbone = self.policy.backbone
        x0 = examples.x0
        span = backbone.process.horizon - self.t_min
        t = self.t_min + span * torch.rand(len(x0), device=x0.device)
        eps = torch.randn_like(x0)
        x = estimates.perturb(backbone.process, t, x0, eps)
        self.policy.calls += len(x)
        output = backbone.predict(x, t, examples.condition.tokens)
        goal = estimates.target(backbone.process, backbone.prediction, t, x0, eps)
        error = ((output.float() - goal) ** 2).flatten(1).mean(1)
        return Loss((examples.weight * error).mean(), {"matching": float(error.detach().mean())})
