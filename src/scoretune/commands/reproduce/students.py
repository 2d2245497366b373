"""Students of consistency: a network whose every answer is where a whole path began.

Distillation (arXiv 2303.01469 Alg. 2) and training (arXiv 2310.14189) of small networks under EDM.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from scoretune.commands.reproduce.denoiser import Denoiser, follow
from scoretune.diffusion.estimates import Field
from scoretune.diffusion.matching import consistency
from scoretune.diffusion.processes import EDM

PROCESS, T_MIN = EDM(80.0), 0.002


class Affine(nn.Module):
    """wₙ x + bₙ, with a row of the table for every time of a grid: f* is of this form."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.levels = torch.log(times).float() / 4
        self.table = nn.Parameter(torch.zeros(len(times), 2))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """The output [B, 1] at the row of the nearest level ¼ ln ρ, [B]."""
        row: Tensor = self.table[(level[:, None] - self.levels).abs().argmin(1)]
        return row[:, :1] * x + row[:, 1:]


def taught(
    model: Denoiser, data: Tensor, teacher: Field | None, updates: int, *, most: int = 40
) -> Denoiser:
    """Distillation on `most` times (arXiv 2303.01469 Alg. 2), or training (2310.14189 Table 1).

    Returns a moving average of the student, whose field is read as a consistency function.
    """
    optimiser = torch.optim.Adam(model.network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    batch, target, mean = 256, copy.deepcopy(model), copy.deepcopy(model)
    for update in range(updates):
        points = most if teacher else consistency.ict_points(update, updates, last=160)
        times = consistency.grid(PROCESS, points, T_MIN)
        x0, eps = data[torch.randint(len(data), (batch,))], torch.randn(batch, data.shape[1])
        with torch.no_grad():
            k = _pairs(times, batch, teacher is not None)
            t, t_next = times[k].float(), times[k + 1].float()
            x = x0 + t[:, None] * eps
            if teacher is None:
                ahead = x0 + t_next[:, None] * eps
            else:
                ahead = consistency.ode_step(PROCESS, teacher, x, t, t_next, solver="heun")
            goal = jump_of(model if teacher is None else target)(ahead, t_next)
        apart = jump_of(model)(x, t) - goal
        if teacher is None:
            loss = (consistency.pseudo_huber(apart, 0.03) / (t - t_next)).mean()
        else:
            loss = (apart**2).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        follow(target.network, model.network, 0.05)
        follow(mean.network, model.network, max(0.005, 1 / (update + 1)))
    return mean


def _pairs(times: Tensor, count: int, uniform: bool) -> Tensor:
    if uniform:
        return torch.randint(len(times) - 1, (count,))
    return torch.multinomial(consistency.lognormal_pairs(times), count, replacement=True)


def jump_of(model: Denoiser) -> consistency.Function:
    """The consistency function (x, t) -> x̄ at T_MIN of a denoiser that was trained as one."""
    field = model.under(PROCESS)
    return consistency.function(PROCESS, field, t_min=T_MIN, sigma_data=model.data_std)
