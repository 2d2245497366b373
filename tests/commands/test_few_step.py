"""Few-step samplers of digits: the base, and the cells of the experiment."""

from __future__ import annotations

import pytest
import torch

from scoretune.commands.reproduce import digit_base, few_step
from scoretune.commands.reproduce.digits import Digits, handwriting, train_reader
from scoretune.core.conditions import Condition
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.policy import Backbone, Policy
from scoretune.rollout import prior, rollout

# ---------------------------------------------------------------------------- the base


def test_digits_are_a_backbone():
    model: Backbone = Digits()
    assert sum(p.numel() for p in model.network.parameters()) <= 300_000
    images = handwriting()[0].images[:4]
    torch.testing.assert_close(model.decode(model.embed(images)), images)
    assert model.embed(images).shape[1:] == model.shape
    x, t = torch.randn(4, *model.shape), torch.linspace(0.1, 1, 4)
    assert model.predict(x, t, model.encode([""] * 4).tokens).shape == x.shape
    assert float(model.decode(5 * x).min()) == 0.0 and float(model.decode(5 * x).max()) == 1.0


def test_no_digit_is_both_learned_from_and_held_out():
    known, held_out = handwriting()
    assert (len(known), len(held_out)) == (1200, 597)
    assert known.images.shape[1:] == (3, 8, 8)
    assert 0 == float(known.images.min()) < float(known.images.max()) == 1
    again, _ = handwriting()
    assert torch.equal(known.images, again.images)
    both = torch.cat([known.images, held_out.images])[:, 0].flatten(1)
    assert len(both.unique(dim=0)) == len(both)


def test_a_reader_learns_to_read():
    known, held_out = handwriting()
    reader = train_reader(known, 200)
    right = reader(held_out.images).argmax(1) == held_out.digits
    assert float(right.float().mean()) > 0.85
    assert reader.look(held_out.images).shape == (597, 32)


@pytest.mark.slow
def test_pretraining_learns():
    """After 150 updates digits are far likelier than noise; the loss is told as it goes."""
    seen: list[float] = []
    known = handwriting()[0]
    model = digit_base.pretrain(known, 150, lambda update, metrics: seen.append(metrics["loss"]))
    assert len(seen) == 150
    assert sum(seen[-20:]) < 0.6 * sum(seen[:5]) / 5 * 20
    policy, generator = Policy(model, GDDIM(1.0)), torch.Generator().manual_seed(0)
    noise, times = prior(policy, 64, generator), grids.uniform(model.process, 10)
    images = model.decode(rollout(policy, Condition.none(64), times, generator, noise).final)
    border = images[:, 0, :, 0].mean()  # digits leave their first column empty
    assert float(border) < 0.2 < float(images[:, 0, 2:6, 2:6].mean())


# ---------------------------------------------------------------------------- the experiment


def test_a_grid_of_rates_comes_first_and_uses_a_seed_of_its_own():
    cells = few_step.cells(3, False)
    assert cells[0].name == "base"
    grid = [c.arguments for c in cells if c.name.startswith("grid")]
    runs = [c.arguments for c in cells if c.name.startswith("run")]
    assert len(grid) == 2 * 3 * len(few_step.GRID) and len(runs) == 2 * 3 * 3
    assert {c["seed"] for c in grid}.isdisjoint(c["seed"] for c in runs)
    assert all(c["rate"] in few_step.GRID for c in runs)
    assert len({c.name for c in cells}) == len(cells)
