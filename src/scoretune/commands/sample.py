"""`scoretune sample`: draw prompts with a fine-tuned model, or samples of a score network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scoretune.commands.options import PromptFile, Seed, Threads, set_threads
from scoretune.core.errors import UserError

PICTURES = Path("samples.png")

if TYPE_CHECKING:
    from torch import Tensor

    from scoretune.policy import Policy


def sample(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model folder.")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to draw, if the model knows prompts.")
    ] = None,
    file: PromptFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write: .png; videos .webp (as .png a contact strip each); without "
            "prompts also .npz (default: samples.png or samples.webp)."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many, without prompts.")] = 64,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the solver (default: the model's own).")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="ddim, dpmpp_2m, heun, gddim, …")] = None,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Draw prompts with a fine-tuned model, side by side; or samples of a network of your own."""
    from scoretune.data.prompts import read_prompts

    set_threads(threads)
    if prompts and file is not None:
        raise UserError("give prompts as words or as --prompts FILE, not both: leave one out")
    texts = prompts or [] if file is None else read_prompts(file).texts
    written = draw(run, texts, out, steps=steps, solver=solver, seed=seed, count=count)
    typer.echo(written)


def draw(
    path: Path,
    prompts: Sequence[str],
    out: Path | None = None,
    *,
    steps: int | None = None,
    solver: str | None = None,
    seed: int = 0,
    count: int = 64,
) -> str:
    """Write one picture or video a prompt, side by side; or `count` samples of a network of one's
    own.

    Says what was written.
    """
    from scoretune.core import distributed
    from scoretune.evaluate import data_samples
    from scoretune.evaluate.report import gallery
    from scoretune.evaluate.samples import deployed_steps
    from scoretune.models.catalog import remarks
    from scoretune.models.recycled import inner
    from scoretune.models.score_network import ScoreNetwork
    from scoretune.models.sizes import check_drawable
    from scoretune.training.run_folder import load, recorded

    policy = load(path, distributed.device())
    network = inner(policy.backbone)
    if not isinstance(network, ScoreNetwork):
        mute = policy.backbone.encode([""]).summary.numel() == 0  # it knows no prompts
        if not prompts and not mute:
            raise UserError("say what to draw: scoretune sample RUN 'a prompt' 'another prompt'")
        texts = prompts or [""] * count
        check_drawable(policy.backbone, prompts)
        _check_ending(policy, out)
        guidance = recorded(path).model.guidance if (path / "run.json").exists() else None
        for line in remarks(policy, guidance, texts):
            typer.echo(f"note: {line}", err=True)
        steps = steps or deployed_steps(policy.backbone)
        images = _images(policy, texts, solver or "ddim", steps, seed)
        return _write(images, texts, out)
    if prompts:
        raise UserError("this network knows no prompts: leave them out and give --count")
    out = out or PICTURES
    gallery.check_ending(out)
    sampler, names = data_samples.noted(_model_folder(path))
    if steps is not None:
        sampler = replace(sampler, steps=steps)
    if solver is not None:
        sampler = replace(sampler, solver=solver, jumps=False)
    samples = data_samples.draw(policy, count, sampler, seed)
    gallery.write(samples, network.content, out, names)
    if network.compression is not None:
        for line in network.compression.certificate.warnings():
            typer.echo(f"note: {line}", err=True)
    return f"{_counted(count, 'sample')} ({sampler}) in {out}"


def _model_folder(path: Path) -> Path:
    """The model folder of a run on data, of a fine-tuning of its model, or itself."""
    from scoretune.core import model_folder
    from scoretune.training.run_folder import recorded

    home = model_folder.home(path) or model_folder.home(Path(recorded(path).model.source))
    assert home is not None, "a network of one's own was loaded from there"
    return home


def _check_ending(policy: Policy, out: Path | None) -> None:
    """Refuse a file that the samples of a model cannot be written as, before they are drawn.
    Raises UserError."""
    from PIL import Image

    from scoretune.evaluate.report import gallery

    if out is None or out.suffix == ".png":  # which fits whatever is drawn
        return
    shape = _sample_shape(policy)
    if len(shape) == 5:
        if out.suffix != ".webp":
            raise UserError(f"cannot write videos as {str(out)!r}: choose --out name.webp")
    elif not _are_pictures(shape):
        gallery.check_ending(out)
    elif Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise UserError(f"cannot write {str(out)!r}: choose --out name.png")


def _sample_shape(policy: Policy) -> tuple[int, ...]:
    """Of one sample, seen by decoding a state; that of a video is known without."""
    import torch

    from scoretune.models.base import Pipelined
    from scoretune.models.recycled import inner

    base = inner(policy.backbone)
    if isinstance(base, Pipelined) and base.frames:
        return (1, base.frames, 3, *(side * base.factor for side in base.shape[-2:]))
    with torch.no_grad():
        state = torch.zeros(1, *policy.backbone.shape, device=policy.device)
        return tuple(policy.decode(state).shape)


def _are_pictures(shape: Sequence[int]) -> bool:
    return len(shape) == 4 and shape[1] == 3


def _images(policy: Policy, texts: Sequence[str], solver: str, steps: int, seed: int) -> Tensor:
    from scoretune.data.prompts import Prompts
    from scoretune.evaluate.mixed_sizes import by_size, on_canvas
    from scoretune.evaluate.samples import deployed_times, sample

    def drawn(prompts: Prompts) -> Tensor:
        times = deployed_times(policy.backbone, steps, prompts.texts)
        return sample(policy, prompts, times=times, seed=seed, solver=solver)

    batches = by_size(policy.backbone, Prompts(tuple(texts), ("all",) * len(texts)))
    images = [(places, drawn(prompts)) for places, prompts in batches]
    return on_canvas(images) if len(images) > 1 else images[0][1]


def _write(images: Tensor, prompts: Sequence[str], out: Path | None) -> str:
    """A strip of pictures, below those that they are edits of, videos side by side, or points and
    series in whatever form `out` ends in; says so."""
    import torch
    from PIL import Image

    from scoretune.evaluate.mixed_sizes import source_pictures
    from scoretune.evaluate.report import gallery

    if images.dim() == 5:
        return _write_videos(images, prompts, out or PICTURES.with_suffix(".webp"))
    out = out or PICTURES
    if not _are_pictures(images.shape):
        gallery.write(images, {2: "points", 3: "series"}.get(images.dim(), "images"), out)
        return _listed(prompts, "sample", out)
    sources = source_pictures(prompts, *images.shape[-2:])
    if sources is not None:
        images = torch.cat([sources, images], 2)
    strip = (images * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2)
    picture = Image.fromarray(strip.numpy())
    grow = max(1, 128 // images.shape[-1])
    size = (picture.width * grow, picture.height * grow)
    try:
        picture.resize(size, Image.Resampling.NEAREST).save(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {str(out)!r} ({error}): choose --out name.png") from error
    return _listed(prompts, "picture", out)


def _write_videos(films: Tensor, prompts: Sequence[str], out: Path) -> str:
    """Videos [B, T, 3, H, W] side by side in an animated WebP, or as a .png a contact strip each,
    one below another; says so."""
    from PIL import Image

    from scoretune.evaluate import videos

    try:
        if out.suffix == ".png":
            strips = videos.sheet(videos.strips(films)[:, None], 1)[0]
            pixels = (strips.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
            Image.fromarray(pixels.numpy()).save(out)
        else:
            videos.write(videos.sheet(films, len(films)), out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {str(out)!r} ({error}): choose --out name.webp") from error
    return _listed(prompts, "video", out)


def _listed(prompts: Sequence[str], what: str, out: Path) -> str:
    """The prompts by their places from the left, and how many of what was written where."""
    places = [f"{i}. {prompt}" for i, prompt in enumerate(prompts, 1)] if any(prompts) else []
    return "\n".join([*places, f"{_counted(len(prompts), what)} in {out}"])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
