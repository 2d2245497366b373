"""A language of ten tokens, a transformer of one layer that speaks it, and people who prefer.

A text is a topic (the prompt, one of four tokens) and a completion: each of its tokens is the topic
with probability 1/4, else one of the other eight words, and it ends after 11 tokens on average. Its
quality q is the topic's share of its words. Of two completions of a topic the first is preferred
with probability σ(6(q_1 − q_2) + b(|y_1| − |y_2|)); b > 0 is a taste for length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOPICS, WORDS, END, TOKENS = 4, 9, 9, 10
LONGEST, MEAN_LENGTH, SHARE = 40, 11, 0.25
"""Tokens of a completion at most, and on average its words and its end; share of the topic."""
TASTE = 6.0


class TinyLM(nn.Module):
    """One layer, 48 wide, four heads; reads a topic and the completion so far."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.token = nn.Embedding(TOKENS, width)
        self.place = nn.Embedding(LONGEST + 1, width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.head = nn.Linear(width, TOKENS)

    def before(self, tokens: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The stream [n, width] of tokens [n] at their places, and queries, keys and values
        [n, 3, heads, width/heads]."""
        x = self.token(tokens) + self.place(places)
        return x, self.attend(self.norms[0](x)).view(len(x), 3, self.heads, -1)

    def after(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Logits [n, 10] from the stream and what attention [n, heads, width/heads] gave it."""
        x = x + self.mix(mixed.reshape(len(x), self.width))
        x = x + self.narrow(torch.relu(self.wide(self.norms[1](x))))
        logits: Tensor = self.head(self.norms[2](x))
        return logits

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits of what follows each of the tokens [B, L] where the mask is true, in its order."""
        rows, places = mask.nonzero(as_tuple=True)
        x, split = self.before(tokens[rows, places], places)
        return self.after(x, self._attended(split, mask))

    def _attended(self, split: Tensor, mask: Tensor) -> Tensor:
        """Causal attention within each row. Rows of like lengths go together, so that little of it
        is padding."""
        lengths = mask.sum(1)
        number = mask.flatten().cumsum(0).view(mask.shape) - 1  # of each true token
        pieces, taken = [], []
        for part in lengths.argsort().chunk(4):
            own = mask[part, : int(lengths[part].max())]
            which = number[part, : own.shape[1]][own]
            padded = split.new_zeros(*own.shape, *split.shape[1:])
            padded = padded.index_put(own.nonzero(as_tuple=True), split[which])
            q, k, v = padded.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            pieces.append(mixed.transpose(1, 2)[own])
            taken.append(which)
        return torch.cat(pieces)[torch.cat(taken).argsort()]


@dataclass(frozen=True)
class Texts:
    """Topics [n] and completions [n, LONGEST], which END pads from their own end on."""

    topics: Tensor
    tokens: Tensor

    @property
    def lengths(self) -> Tensor:
        """|y| [n], the end counted where it was reached."""
        return ((self.tokens != END).sum(1) + 1).clamp(max=self.tokens.shape[1])

    @property
    def quality(self) -> Tensor:
        """q [n]: the topic's share of the words; 0 of no words."""
        words = (self.tokens != END).sum(1)
        return (self.tokens == self.topics[:, None]).sum(1) / words.clamp(min=1)

    def at(self, places: Tensor) -> Texts:
        return Texts(self.topics[places], self.tokens[places])


def of_the_language(count: int, generator: torch.Generator) -> Texts:
    """Texts as the base model is to learn them."""
    topics = torch.randint(TOPICS, (count,), generator=generator)
    other = torch.randint(WORDS - 1, (count, LONGEST), generator=generator)
    other = other + (other >= topics[:, None])
    on_topic = torch.rand(count, LONGEST, generator=generator) < SHARE
    tokens = torch.where(on_topic, topics[:, None], other)
    stops = torch.rand(count, LONGEST, generator=generator) < 1 / MEAN_LENGTH
    stops[:, 0] = False
    ended = stops.cumsum(1) > 0
    return Texts(topics, tokens.masked_fill(ended, END))


def laws(model: TinyLM, texts: Texts) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token of the completions: its text [m], the token [m], and ln π(·|…) [m, 10]."""
    length = int(texts.lengths.max())
    tokens = texts.tokens[:, :length]
    mask = torch.arange(length) < texts.lengths[:, None]
    read = torch.cat([texts.topics[:, None], tokens[:, :-1]], 1)
    law = F.log_softmax(model(read, mask), -1)
    return mask.nonzero()[:, 0], tokens[mask], law


def logps(model: TinyLM, texts: Texts) -> Tensor:
    """lp(y) [n] in nats."""
    rows, tokens, law = laws(model, texts)
    of_tokens = law.gather(1, tokens[:, None])[:, 0]
    return law.new_zeros(len(texts.topics)).index_add(0, rows, of_tokens)


@torch.no_grad()
def mean_entropies(model: TinyLM, texts: Texts) -> Tensor:
    """H̄(y) [n], mean entropies of the tokens over log V, in (0, 1]."""
    rows, _, law = laws(model, texts)
    entropies = -(law.exp() * law).sum(1) / math.log(TOKENS)
    total = law.new_zeros(len(texts.topics)).index_add(0, rows, entropies)
    return total / texts.lengths


@torch.no_grad()
def speak(model: TinyLM, topics: Tensor, generator: torch.Generator) -> Texts:
    """A completion of every topic [n], drawn from the model."""
    alive = torch.arange(len(topics))
    drawn = torch.full((len(topics), LONGEST), END)
    last = topics
    past = torch.empty(len(topics), 2, model.heads, 0, model.width // model.heads)
    for place in range(LONGEST):
        x, split = model.before(last, torch.full_like(last, place))
        past = torch.cat([past, split[:, 1:, :, None]], 3)
        query = split[:, 0, :, None]
        mixed = F.scaled_dot_product_attention(query, past[:, 0], past[:, 1])[:, :, 0]
        law = model.after(x, mixed).softmax(-1)
        token = torch.multinomial(law, 1, generator=generator)[:, 0]
        drawn[alive, place] = token
        on = token != END
        alive, last, past = alive[on], token[on], past[on]
        if not len(alive):
            break
    return Texts(topics, drawn)


def base_model(seed: int, updates: int = 250) -> TinyLM:
    """A model that has learned the language."""
    torch.manual_seed(seed)
    model = TinyLM()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, fused=True)
    for _ in range(updates):
        texts = of_the_language(128, generator)
        loss = -logps(model, texts).sum() / texts.lengths.sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@dataclass(frozen=True)
class Judged:
    """Pairs of completions: what was preferred, and what was not."""

    chosen: Texts
    rejected: Texts


def judged(first: Texts, second: Texts, length_bias: float, generator: torch.Generator) -> Judged:
    """Pairs by the taste of this world, whose judgements are as noisy as it says."""
    taste = TASTE * (first.quality - second.quality)
    taste = taste + length_bias * (first.lengths - second.lengths)
    wins = torch.rand(len(taste), generator=generator) < taste.sigmoid()
    chosen = torch.where(wins[:, None], first.tokens, second.tokens)
    rejected = torch.where(wins[:, None], second.tokens, first.tokens)
    return Judged(Texts(first.topics, chosen), Texts(first.topics, rejected))
