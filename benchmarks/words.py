"""How well models of `scoretune pretrain words` spell the held-out words, by two readers.

    python benchmarks/words.py MODEL RUN ... [--times 4] [--guidance 1]

Every held-out word is drawn `times` times (DDIM, 20 steps, the same noise for all). `ocr` is the
reward `ocr(engine=rapidocr, detect=false)`, `letters` the templates that nothing is trained on:
the share of letters, and of whole words with its 95 % interval over words. `serif` is the share of
pictures that are nearer to the font with serifs, `inks` how evenly the four inks are used, as
exp(entropy).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from scoretune.data import words
from scoretune.data.prompts import Prompts
from scoretune.data.scenes.draw import BACKGROUND, INKS
from scoretune.evaluate.samples import deployed_times, sample
from scoretune.rewards.letters import Letters, likeness
from scoretune.rewards.ocr import Ocr
from scoretune.training.run_folder import load


def with_interval(values: Tensor, times: int) -> str:
    """The mean of one value a picture, and 1.96 standard errors over words."""
    means = values.unflatten(0, (-1, times)).mean(1)
    return f"{float(means.mean()):.3f} ± {1.96 * float(means.std()) / len(means) ** 0.5:.3f}"


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.0)
    given = parser.parse_args()
    told = [word for word in words.HELD_OUT for _ in range(given.times)]
    prompts = Prompts(tuple(map(words.prompt, told)), ("all",) * len(told))
    reader, templates = Ocr(engine="rapidocr", detect=False), Letters()
    for model in given.models:
        policy = load(model)
        policy.guidance = given.guidance
        pictures = sample(policy, prompts, times=deployed_times(policy.backbone, 20), seed=77)
        shown = []
        for name, look in {"ocr": reader, "letters": templates}.items():
            score = look(pictures, prompts.texts)
            whole = with_interval((score > 0.99).float(), given.times)
            shown.append(f"{name} {float(score.mean()):.3f} words {whole}")
        more = f"serif {serif(pictures, told):.2f} inks {inks(pictures):.2f}"
        print(model, *shown, more, sep="  ", flush=True)


if __name__ == "__main__":
    main()
