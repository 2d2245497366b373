"""Pictures that a policy draws for prompts, from the same noise each time, and a sheet of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoretune.core import distributed, files, fsdp
from scoretune.core.conditions import Condition
from scoretune.core.records import spans
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.paths import INTEGRAL_END
from scoretune.diffusion.processes import Process
from scoretune.evaluate import videos
from scoretune.evaluate.mixed_sizes import source_pictures
from scoretune.models.sizes import shape_of, sized
from scoretune.policy import Backbone, Deployment, Policy, adapter_layers, deployment_of
from scoretune.rollout import Acting, prior, rollout, sampled

PREVIEW_COLUMNS = 6

Walk = Callable[[Condition, Tensor, torch.Generator], Tensor]
"""From prompts and pure noise x [B, *S] to the data end; the generator is for further noise."""


STEPS = 20
"""Of a model's sampler, where nobody has said how many it takes."""


def deployed_steps(backbone: Backbone) -> int:
    """The steps that a model is sampled with unless told otherwise."""
    deployment = deployment_of(backbone)
    return STEPS if deployment is None else deployment.steps


def deployed_times(backbone: Backbone, steps: int, prompts: Sequence[str] = ()) -> Tensor:
    """The times [N+1] of a model's own sampler in so many steps, for pictures of the size that
    prompts ask for; uniform where it has none."""
    return times_of(backbone.process, deployment_of(sized(backbone, prompts)), steps)


def times_of(process: Process, deployment: Deployment | None, steps: int) -> Tensor:
    """`deployed_times` of a model that is not there."""
    return grids.uniform(process, steps) if deployment is None else deployment.times(steps)


@torch.no_grad()
def pictures(policy: Policy, prompts: Prompts, *, walk: Walk, seed: int, batch: int = 64) -> Tensor:
    """Images [B, 3, H, W], of a model of videos [B, T, 3, H, W], on the CPU, at the end of a walk;
    of one seed all walks begin in the same noise. All prompts ask for one size, as those of
    `mixed_sizes.by_size` do.

    Several processes draw a part each, with further noise of its own, and all get all of them.
    """
    generator, team = torch.Generator().manual_seed(seed), distributed.team()
    noise = prior(policy, len(prompts), generator, shape_of(policy.backbone, prompts.texts))
    if team.size > 1:
        generator.manual_seed(seed + 1_000_003 * (team.rank + 1))
    images = []
    part = part_of(len(prompts))
    indices = list(range(part.start, part.stop))
    count = len(indices)
    if fsdp.is_sharded(policy.backbone.network):  # all must ask the network equally often
        indices += [len(prompts) - 1] * (distributed.most(count) - count)
    for span in spans(len(indices), batch):
        rows = indices[span]
        condition = policy.encode([prompts.texts[i] for i in rows])
        images.append(policy.decode(walk(condition, noise[rows], generator)).cpu())
    empty = policy.decode(noise[:1].to(policy.device)).cpu() if not images else images[0]
    none = empty[:0]
    return distributed.gather(torch.cat([none, *images])[:count])


def part_of(count: int) -> slice:
    """What this process draws or judges of `count`: nearly equal parts, in order."""
    team = distributed.team()
    return slice(count * team.rank // team.size, count * (team.rank + 1) // team.size)


def sample(
    policy: Policy,
    prompts: Prompts,
    *,
    times: Tensor,
    seed: int,
    solver: str = "ddim",
    batch: int = 64,
) -> Tensor:
    """Images [B, 3, H, W] for the prompts from fixed noise, through a solver."""

    def walk(condition: Condition, x: Tensor, generator: torch.Generator) -> Tensor:
        return sampled(policy, condition, times, x, solver, generator)

    return pictures(policy, prompts, walk=walk, seed=seed, batch=batch)


@torch.no_grad()
def drawn(
    policy: Policy,
    texts: Sequence[str],
    noise: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    solver: str = "ddim",
) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] on the CPU of one batch, each from its own noise, by this
    process alone; the generator is for a solver's further noise."""
    times = deployed_times(policy.backbone, steps, texts)
    x0 = sampled(policy, policy.encode(texts), times, noise, solver, generator)
    return policy.decode(x0).float().cpu().clamp(0, 1)


def act(
    policy: Policy,
    prompts: Prompts,
    *,
    times: Tensor,
    seed: int,
    batch: int = 64,
    integral_end: float = INTEGRAL_END,
) -> tuple[Tensor, dict[str, float]]:
    """Images [B, 3, H, W] through the policy's own kernel from the same noise, and how far it is
    from the pretrained policy, in nats.

    The kernel acts on every step, also where a run has a window of stochastic steps. `chain_kl` is
    the KL of the chains that drew these images; `girsanov_kl` that of continuous time, measured on
    paths with jittered times, so that it is the same on any grid; of a flow it ends at
    `integral_end` (`diffusion.paths`). There are none without an adapter, hence without a
    pretrained policy to compare with.
    """
    adapted = bool(adapter_layers(policy.backbone.network))
    kls: dict[str, list[Tensor]] = {"chain_kl": [], "girsanov_kl": []}

    def walk(condition: Condition, x: Tensor, generator: torch.Generator) -> Tensor:
        acted = rollout(policy, condition, times, generator, x, reference=adapted)
        if adapted:
            jittered = rollout(
                policy,
                condition,
                times,
                generator,
                x,
                acting=Acting(jitter=True, integral_end=integral_end),
                reference=True,
            )
            for name, kl in (("chain_kl", acted.chain_kl), ("girsanov_kl", jittered.girsanov_kl)):
                assert kl is not None
                kls[name].append(kl.cpu())
        return acted.final

    images = pictures(policy, prompts, walk=walk, seed=seed, batch=batch)
    if not adapted:
        return images, {}
    part = part_of(len(prompts))
    count = part.stop - part.start

    def mean(parts: list[Tensor]) -> float:
        values = torch.cat([images.new_zeros(0), *parts])[:count]
        return float(distributed.gather(values).mean())

    return images, {name: mean(parts) for name, parts in kls.items()}


# ------------------------------------------------------------------------------- previews


def preview_indices(prompts: Prompts, per_task: int = 4) -> list[int]:
    """The first few prompts of each task (or of all, where there is one task)."""
    tasks = list(dict.fromkeys(prompts.tasks))
    count = per_task if len(tasks) > 1 else per_task * PREVIEW_COLUMNS
    places = {task: [i for i, name in enumerate(prompts.tasks) if name == task] for task in tasks}
    return [i for task in tasks for i in places[task][:count]]


def save_preview(
    images: Tensor, prompts: Prompts, *, accepted: Tensor | None, folder: Path, name: str
) -> None:
    """A sheet of images as `name.png`; `prompts.json` tells what is shown, and `accepted` [B]. Of
    prompts that edit pictures those are on a sheet `source.png`; of videos a sheet has a contact
    strip each, and each is `videos/name-00.webp`."""
    folder.mkdir(parents=True, exist_ok=True)
    indices, columns = preview_indices(prompts), PREVIEW_COLUMNS
    shown = images[indices].cpu()
    if shown.dim() == 5:
        (folder / "videos").mkdir(exist_ok=True)
        shown, columns = videos.small(shown), 1
        for place, video in enumerate(shown):
            videos.write(video, folder / "videos" / f"{name}-{place:02}.webp")
        shown = videos.strips(shown)
    height, width = shown.shape[-2:]
    _save_sheet(shown, folder / f"{name}.png", columns)
    sources = source_pictures([prompts.texts[i] for i in indices], height, width)
    if sources is not None:
        _save_sheet(sources, folder / "source.png", columns)
    path = folder / "prompts.json"
    captions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    captions |= {
        "prompts": [prompts.texts[i] for i in indices],
        "columns": columns,
        "side": height,
        "width": width,
    }
    if accepted is not None:
        captions[f"{name}_right"] = [bool(accepted[i] > 0.5) for i in indices]
    files.write_whole(path, json.dumps(captions, indent=2) + "\n")


def _save_sheet(images: Tensor, file: Path, columns: int) -> None:
    """Images [B, 1 or 3, H, W], so many a row."""
    from PIL import Image

    pixels = (images.cpu().expand(-1, 3, -1, -1) * 255).round().byte()
    sheet = videos.sheet(pixels[:, None], columns)[0]
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(file)
