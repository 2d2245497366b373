"""The world of words: three letters beside each other on a small picture.

Every fifth word is held out: it stands in no training picture, in no caption and in no prompt of
fine-tuning. A picture shows capital letters; a prompt is the word between quotes, as the reward
`ocr` wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.data.scenes.draw import BACKGROUND, INKS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 3  # letters a word
HEIGHT, WIDTH = 24, 48
CELL = WIDTH // LENGTH  # pixels of a letter's own place
SIZES = (14, 15)  # of a font, in pixels
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold")  # of those that matplotlib carries

_LIST = """
ace act add age ago aid aim air ant ape arc ark arm art ash ask axe bad bag ban bar bat bay bed
bee bet big bit bow box boy bud bug bun bus buy cab can cap car cat cod cow cry cub cup cut dad
day den dew did dig dip dog dot dry dug dye ear eat eel egg elk elm end era eve eye fan far fat
fed few fig fin fir fit fix fly fog fox fun fur gap gas get gin gum gun guy gym had ham hat hay
hen hid hip hit hop hot how hub hug hut ice ink inn ivy jam jar jaw jet job jog joy jug keg key
kid kit lab lad lap law lay leg lid lip log lot low mad man map mat men mix mob mop mud mug nap
net new nod nut oak oar odd oil old one orb our owl own pad pan paw pay pea pen pet pie pig pin
pit pop pot pub rag ram ran rat raw ray red rib rim rip rob rod row rub rug rum run rye sad sap
saw sea set sew shy sit six ski sky sly son sow spa spy sum sun tab tan tap tar tax tea ten tie
tin tip toe ton top toy tub tug two urn use van vat vet vow wag war was wax way web wet who wig
win wit yak yam yes yet zap zip zoo
"""
WORDS = tuple(_LIST.split())
HELD_OUT = WORDS[2::5]
TRAINING = tuple(word for word in WORDS if word not in set(HELD_OUT))


def prompt(word: str) -> str:
    """What is asked for a picture of a word."""
    return f'"{word}"'


def asked(prompt: str) -> str:
    """The word that a prompt asks for. Raises UserError for one that asks for none."""
    word = str(prompt).strip().strip('"').lower()
    if len(word) != LENGTH or not set(word) <= set(LETTERS):
        raise UserError(f"the prompt {str(prompt)!r} is no word of {LENGTH} letters in quotes")
    return word


def write_prompts(folder: Path) -> None:
    """The prompts of fine-tuning and the held-out ones, as text files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in {"words.txt": TRAINING, "heldout.txt": HELD_OUT}.items():
        (folder / name).write_text("".join(f"{prompt(word)}\n" for word in chosen))


def any_word(rng: np.random.Generator) -> str:
    """Letters at random, which are never a held-out word."""
    while True:
        word = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=LENGTH))
        if word not in HELD_OUT:
            return word


def misspelt(word: str, rng: np.random.Generator) -> str:
    """The word with one of its letters replaced by another, and never a held-out word."""
    while True:
        place, letter = rng.integers(LENGTH), LETTERS[rng.integers(len(LETTERS))]
        wrong = word[:place] + letter + word[place + 1 :]
        if wrong != word and wrong not in HELD_OUT:
            return wrong


def drawn(words: Sequence[str], rng: np.random.Generator) -> Tensor:
    """Pictures [B, 3, 24, 48] in [0, 1], each in one of the fonts, sizes and inks, at most a pixel
    off its place."""
    pictures = np.empty((len(words), HEIGHT, WIDTH, 3), dtype=np.float32)
    for picture, word in zip(pictures, words, strict=True):
        font, size = FONTS[rng.integers(len(FONTS))], int(rng.integers(SIZES[0], SIZES[1] + 1))
        ink = INKS[rng.integers(len(INKS))]
        right, down = (int(shift) for shift in rng.integers(-1, 2, size=2))
        line = np.concatenate([glyph(letter, font, size) for letter in word], axis=1)
        stroke = np.roll(line, (down, right), (0, 1))[:, :, None]
        picture[:] = BACKGROUND * (1 - stroke) + ink * stroke
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


@lru_cache(1024)
def glyph(letter: str, font: str, size: int) -> NDArray[np.float32]:
    """How much of each pixel of its cell [24, 16] a capital letter covers, in the middle of it."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    file = Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{font}.ttf"
    face = ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
    left, _, right, _ = face.getbbox(letter.upper())
    _, top, _, bottom = face.getbbox("H")  # all stand on one line
    x, y = round((CELL - right - left) / 2), round((HEIGHT - bottom - top) / 2)
    cell = Image.new("L", (CELL, HEIGHT))
    ImageDraw.Draw(cell).text((x, y), letter.upper(), 255, face)
    return np.asarray(cell, dtype=np.float32) / np.float32(255)
