"""Samples of a network that was trained on data, and their distances to the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.matching import consistency
from scoretune.diffusion.processes import Process, noise_ratio
from scoretune.evaluate import metrics
from scoretune.evaluate.features import named_features
from scoretune.models import score_network
from scoretune.models.recycled import inner
from scoretune.models.score_network import ScoreNetwork
from scoretune.policy import Policy
from scoretune.rollout import sampled

CLEAN = 0.005
"""Standard deviations of noise under which a sample is finished by one jump to the data."""
RESAMPLES = 30
POOLED = 8
"""Pictures are compared at this many pixels a side at most: means of blocks."""


@dataclass(frozen=True)
class DataSampler:
    """How a model draws: a solver, or (`jumps`) the consistency function; `steps` calls."""

    solver: str = "dpmpp_2m"
    steps: int = 20
    t_min: float = 1e-3
    jumps: bool = False
    sigma_data: float = 1.0

    def __str__(self) -> str:
        count = f"{self.steps} step" + ("s" if self.steps > 1 else "")
        return f"{'consistency' if self.jumps else self.solver}, {count}"


def save(
    model: ScoreNetwork, folder: Path, sampler: DataSampler, names: Sequence[str] = ()
) -> None:
    """Write a model folder that knows how its samples are drawn, and what their columns are."""
    score_network.save(model, folder, {"sampler": asdict(sampler), "names": list(names)})


def noted(folder: Path) -> tuple[DataSampler, list[str]]:
    """The sampler and the columns' names that a model folder was saved with."""
    try:
        notes = score_network.notes(folder)
        return DataSampler(**notes["sampler"]), [str(name) for name in notes["names"]]
    except (TypeError, KeyError) as error:
        raise UserError(
            f"model folder {str(folder)!r} does not say how to draw ({error}): save the model with "
            "scoretune.evaluate.data_samples.save"
        ) from error


@torch.no_grad()
def draw(policy: Policy, count: int, sampler: DataSampler, seed: int, batch: int = 128) -> Tensor:
    """Samples [count, *S] in the data's own units, from fixed noise."""
    model, learned = policy.backbone, inner(policy.backbone)
    assert isinstance(learned, ScoreNetwork), "only such a network is drawn from here"
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((count, *model.shape), generator=generator)
    parts = []
    for span in spans(count, batch):
        eps = noise[span].to(policy.device)
        condition = model.encode([""] * len(eps))
        parts.append(model.decode(_sampled(policy, condition, sampler, eps, generator)))
    samples = torch.cat(parts)
    if not bool(samples.isfinite().all()):
        raise UserError(
            f"samples of {sampler} are not finite: train longer or at a lower rate, or choose "
            "another process or sampler"
        )
    return samples[:, : learned.data_shape[0]]  # a grey picture is decoded to three channels


def _sampled(
    policy: Policy,
    condition: Condition,
    sampler: DataSampler,
    eps: Tensor,
    generator: torch.Generator,
) -> Tensor:
    process, t_min = policy.backbone.process, sampler.t_min
    if not sampler.jumps:
        path, x = times(process, sampler.steps, t_min), eps * process.prior_std
        return sampled(policy, condition, path, x, sampler.solver, generator)
    path = consistency.grid(process, sampler.steps + 1, t_min)[:-1].float()
    jump = consistency.function(
        process, policy.field(condition), t_min=t_min, sigma_data=sampler.sigma_data
    )
    x = eps * float(process.sigma(path[0]))
    return consistency.multistep(process, jump, x, path, t_min=t_min, generator=generator)


def times(process: Process, steps: int, t_min: float) -> Tensor:
    """A sampler's times [steps + 1] for any process, ending at 0.

    Equal steps of ρ^{1/7} (arXiv 2206.00364 eq. 5), the last one from little noise to none;
    equal steps of time where no signal is left at the horizon, for ρ is infinite there.
    """
    ends = torch.tensor([process.horizon], dtype=torch.float64)
    if steps == 1 or not bool(noise_ratio(process, ends).isfinite()):
        return grids.uniform(process, steps, 0.0)
    clean = float(grids.time_of_ratio(process, torch.full((1,), CLEAN)))
    least = clean if clean > t_min else t_min  # NaN where the data are never that clean
    path = grids.karras(process, steps - 1, t_end=least, most=grids.most_ratio(process))
    return torch.cat([path, torch.zeros(1)])


# ------------------------------------------------------------------------------- distances


def distances(samples: Tensor, real: Tensor, model: ScoreNetwork) -> dict[str, float]:
    """Sliced Wasserstein and Fréchet distance of samples to data, both in the data's own units.

    Of pictures: pixels, averaged to 8×8 blocks where they are larger. Of points and series:
    numbers in standard deviations of the data.
    """
    first, second = (_features(part, model) for part in (samples, real))
    values = {"sliced_wasserstein": metrics.sliced_wasserstein(first, second)}
    if first.shape[1] > 1:
        values["frechet"] = metrics.frechet_distance(first, second)
    return {name: round(float(value), 6) for name, value in values.items()}


def featured(
    samples: Tensor, real: Tensor, model: ScoreNetwork, name: str
) -> dict[str, dict[str, float]]:
    """Fréchet and kernel distance in the named features, with 95 % intervals of `with_interval`."""
    if model.content != "images":
        raise UserError(f"--features is for pictures, and this model draws {model.content}")
    features = named_features(name)
    colour = [part.cpu().expand(-1, max(3, part.shape[1]), -1, -1) for part in (samples, real)]
    first, second = (features(images) for images in colour)
    values = {}
    for label, distance in (
        ("frechet", metrics.frechet_distance),
        ("kernel", metrics.kernel_distance),
    ):
        interval = metrics.with_interval(distance, first, second, resamples=RESAMPLES)
        ends = zip(("value", "low", "high"), interval, strict=True)
        values[label] = {end: round(value, 6) for end, value in ends}
    return values


def decoder(model: ScoreNetwork) -> dict[str, dict[str, float]]:
    """How well a compressed model's decoder has converged; nothing of one that need not."""
    if model.compression is None or model.compression.decoder == "linear":
        return {}
    return {"decoder": model.compression.certificate.as_dict()}


def _features(data: Tensor, model: ScoreNetwork) -> Tensor:
    data = data.cpu()
    if model.content != "images":
        return model.numbers(data)
    height, width = (min(side, POOLED) for side in data.shape[-2:])
    return F.adaptive_avg_pool2d(data, (height, width)).flatten(1)


def policy_of(folder: Path) -> Policy:
    """The policy of a saved model, acting through its reverse SDE."""
    return Policy(score_network.load(folder), GDDIM(1.0))
