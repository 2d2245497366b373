"""How well models of `scoretune pretrain words` spell the held-out words, by two readers.

    python benchmarks/words.py MODEL RUN ... [--times 4] [--guidance 1] [--picture FILE]

Every held-out word is drawn `times` times (DDIM, 20 steps, the same noise for all models). `ocr` is
the reward `ocr(engine=rapidocr, detect=false)`, `letters` the templates that nothing is trained on:
the share of letters (for `ocr` its reward) and of whole words, with 95 % intervals over words; in
brackets the gain over the first model, word by word. `serif` is the share of pictures that are
nearer to the font with serifs, `inks` how evenly the four inks are used, as exp(entropy).
`--picture` puts the first picture of every word on a sheet, a row a model, with a red line under
what the templates misread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoretune.data import words
from scoretune.data.prompts import Prompts
from scoretune.data.scenes.draw import BACKGROUND, INKS
from scoretune.evaluate.samples import deployed_times, sample
from scoretune.rewards.base import Reward
from scoretune.rewards.letters import Letters, likeness
from scoretune.rewards.ocr import Ocr
from scoretune.training.run_folder import load


def with_interval(values: Tensor, times: int) -> str:
    """The mean of one value a picture [B], and 1.96 standard errors over words."""
    means = values.unflatten(0, (-1, times)).mean(1)
    return f"{float(means.mean()):.3f} ± {1.96 * float(means.std()) / len(means) ** 0.5:.3f}"


def described(score: Tensor, first: Tensor, times: int) -> str:
    """Letters and whole words by one reader [B], and what they gained over the first model's."""
    parts = []
    for name, value in {"": lambda s: s, " words": lambda s: (s > 0.99).float()}.items():
        gain = with_interval(value(score) - value(first), times)
        parts.append(f"{name} {with_interval(value(score), times)} (gain {gain})")
    return "".join(parts)


def serif(pictures: Tensor, told: list[str]) -> float:
    """The share of pictures whose letters are likest to those with serifs."""
    numbers = torch.tensor([[words.LETTERS.index(letter) for letter in word] for word in told])
    looks = likeness(pictures).gather(2, numbers[..., None, None].expand(-1, -1, 1, 4)).sum((1, 2))
    return float((looks.unflatten(1, (2, -1)).amax(2).argmax(1) == 1).float().mean())


def inks(pictures: Tensor) -> float:
    """exp(entropy) of the ink that a picture is nearest to, 1 to 4."""
    paper = torch.from_numpy(BACKGROUND)[:, None, None]
    weight = (pictures - paper).clamp(min=0).sum(1, keepdim=True)
    colour = torch.nn.functional.normalize((pictures * weight).sum((2, 3)))
    known = torch.nn.functional.normalize(torch.from_numpy(INKS))
    share = torch.bincount((colour @ known.T).argmax(1), minlength=len(INKS)) / len(pictures)
    return float(torch.special.entr(share).sum().exp())


def sheet(rows: Sequence[Tensor], told: Sequence[str], file: Path) -> None:
    """Pictures [N, 3, 24, 48] of N words by each model, ten words a line, magnified."""
    from PIL import Image, ImageDraw

    wide, high, across, gap = 2 * words.WIDTH, 2 * words.HEIGHT, 10, 6
    block = len(rows) * (high + gap) + 20
    size = across * (wide + gap) + gap, -(-len(told) // across) * block
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for n, word in enumerate(told):
        x, y = gap + n % across * (wide + gap), n // across * block
        pen.text((x + wide // 2, y + 3), word, fill="black", anchor="ma")
        for row, pictures in enumerate(rows):
            pixels = (pictures[n].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            top = y + 18 + row * (high + gap)
            page.paste(
                Image.fromarray(pixels).resize((wide, high), Image.Resampling.NEAREST), (x, top)
            )
            if float(Letters()(pictures[n : n + 1], [words.prompt(word)])) < 1:
                pen.line((x, top + high + 1, x + wide - 1, top + high + 1), fill="red", width=3)
    page.save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    told = [word for word in words.HELD_OUT for _ in range(given.times)]
    prompts = Prompts(tuple(map(words.prompt, told)), ("all",) * len(told))
    readers: dict[str, Reward] = {"ocr": Ocr(engine="rapidocr", detect=False), "letters": Letters()}
    first: dict[str, Tensor] = {}
    rows = []
    for model in given.models:
        policy = load(model)
        policy.guidance = given.guidance
        pictures = sample(policy, prompts, times=deployed_times(policy.backbone, 20), seed=77)
        rows.append(pictures[:: given.times])
        scores = {name: look(pictures, prompts.texts) for name, look in readers.items()}
        first = first or scores
        shown = [name + described(scores[name], first[name], given.times) for name in scores]
        more = f"serif {serif(pictures, told):.2f} inks {inks(pictures):.2f}"
        print(model, *shown, more, sep="  ", flush=True)
    if given.picture:
        sheet(rows, words.HELD_OUT, given.picture)


if __name__ == "__main__":
    main()
