"""A run stops at the first number that is NaN or infinite, says which, and keeps what was good."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scoretune import recipes
from scoretune.core import checkpoints, files
from scoretune.core.checkpoints import CheckpointError
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Examples, Loss, Round
from scoretune.models.networks import Design
from scoretune.models.score_network import ScoreNetwork
from scoretune.policy import Policy
from scoretune.rewards.base import NotFinite, checked
from scoretune.training import loop, overrides
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Silent, learned
from scoretune.training.nonfinite import NonFinite, blame_model, blame_reward, check_weights

NAN = float("nan")


class Line:
    """A weight w learned by (w − x)² from one x an update; `metrics` of every update."""

    def __init__(self, *values: float, start: float = 0.5, rate: float = 0.25) -> None:
        self.weight = torch.nn.Parameter(torch.tensor([start]))
        self.optimiser = torch.optim.SGD([self.weight], lr=rate)
        self.values, self.metrics = values, list[dict[str, float]]()

    def train(
        self, objective: Callable[[Any], Loss] | None = None, *, skips: bool = False, **options: Any
    ) -> None:
        loop.train(
            self.round,
            objective or (lambda batch: Loss(((self.weight - batch.x0) ** 2).mean())),
            self.optimiser,
            TorchEngine(skips=skips),
            updates=range(len(self.values)),
            hooks=[lambda update, metrics: self.metrics.append(dict(metrics))],
            **options,
        )

    def round(self, update: int) -> Round:
        x = torch.tensor([[self.values[update]]])
        return Round([Examples(x, Condition.none(1), torch.ones(1))], {"reward": 3e38})


def test_a_step_is_not_taken_with_a_gradient_that_is_none():
    line = Line(1.0, NAN, 0.0)
    with pytest.raises(NonFinite, match=r"update 2: the gradient is not finite, nor is what the"):
        line.train(clip_norm=9.0)
    assert line.weight.item() == pytest.approx(0.5 + 0.25 * 2 * 0.5)  # of update 1 alone
    assert len(line.metrics) == 1 and "skipped_steps" not in line.metrics[0]


def test_skipping_leaves_the_step_out_and_counts_it():
    line, without = Line(1.0, NAN, 0.0), Line(1.0, 0.0)
    line.train(skips=True)
    without.train(skips=True)
    assert torch.equal(line.weight, without.weight)
    assert [metrics["skipped_steps"] for metrics in line.metrics] == [0, 1, 0]
    assert line.metrics[1] == {"reward": 3e38, "optimiser_steps": 0, "skipped_steps": 1}
    calls: list[int] = []
    hook = learned(lambda update, metrics: calls.append(update))
    for update, metrics in enumerate(line.metrics, 1):
        hook(update, metrics)
    assert calls == [1, 3]


def test_a_loss_that_is_none_ends_the_run_though_its_gradient_is_one():
    line = Line(1.0)
    with pytest.raises(NonFinite, match="update 1: the loss is not finite, while the weights"):
        line.train(lambda batch: Loss((line.weight * 1.0).sum() + math.inf), skips=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda line: line.weight.data.fill_(NAN), r"nor are 1 of 1 trained weights.*lower optim"),
        (lambda line: None, r"at most 0.5\) and what is learned from.*optimiser.nonfinite=skip"),
    ],
)
def test_what_was_not_finite_is_said(spoil, said):
    line = Line(1.0)
    spoil(line)
    broken = lambda batch: Loss((line.weight * NAN).sum())  # noqa: E731
    with pytest.raises(NonFinite, match=said) as caught:
        line.train(broken)
    assert "optimiser.learning_rate (now 0.25)" in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_overflow_in_half_precision_is_no_failure():
    line = Line(1.0, 1.0)
    machine = TorchEngine(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    huge = torch.tensor([1e36])
    loop.train(
        line.round,
        lambda batch: Loss((line.weight * huge).sum()),  # times the scale it is infinite
        line.optimiser,
        machine,
        updates=[0],
    )
    assert line.weight.item() == 0.5 and machine.scaler.get_scale() == 2.0**9


# ------------------------------------------------------------------------------ what is written


def test_a_checkpoint_never_holds_one_and_the_last_good_one_stays(tmp_path):
    good = checkpoints.save(tmp_path, 1, {"policy": {"w": torch.ones(2)}}, keep=1)
    for bad in (NAN, math.inf):
        spoilt = {"policy": {"v": torch.ones(1), "w": torch.tensor([1.0, bad])}, "n": [{"x": 1}]}
        with pytest.raises(CheckpointError, match=r"1 of 2 tensors hold NaN or.*policy\.w first"):
            checkpoints.save(tmp_path, 2, spoilt, keep=1)
    assert checkpoints.latest(tmp_path) == good and len(list(tmp_path.iterdir())) == 1


def test_no_export_holds_one(tmp_path):
    with pytest.raises(UserError, match=r"is not written: 1 of 2 tensors hold NaN or infinity, b"):
        files.save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(1), "b": torch.tensor(NAN)})
    assert not list(tmp_path.iterdir())
    files.save_tensors(tmp_path / "w.safetensors", {"a": torch.arange(3), "b": torch.zeros(0)})


def test_a_disk_that_is_full_is_an_error_of_the_disk(tmp_path):
    from safetensors import SafetensorError

    with (
        pytest.raises(OSError, match="No space left on device") as caught,
        files.disk_errors(tmp_path),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
    assert caught.value.errno == 28
    with pytest.raises(SafetensorError), files.disk_errors(tmp_path):
        raise SafetensorError("invalid header")


# ------------------------------------------------------------------------------ who is to blame


def mean(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return images.mean((1, 2, 3))


def test_the_reward_is_not_blamed_for_pictures_that_hold_nan():
    images = torch.full((2, 3, 4, 4), 0.5)
    images[1, 0, 0, 0] = NAN

    def picky(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return torch.tensor([float(int(image.mean() * 255)) for image in images])

    for reward in (mean, picky, lambda images, prompts: torch.zeros(len(images))):
        with pytest.raises(NotFinite, match="the model's sample for the prompt 'b' holds NaN"):
            checked(reward, "mine", images, ["a", "b"])
    with pytest.raises(UserError, match="reward 'mine' is inf for the prompt 'a'"):
        checked(lambda i, p: mean(i, p) / 0, "mine", images[:1], ["a"])


def test_a_slope_of_the_reward_that_is_none_is_named():
    error = NonFinite("update 5: the gradient is not finite, while", explained=False)
    images = torch.full((1, 3, 4, 4), 0.25)

    def rooted(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return mean(images, prompts) + ((images - 0.25).abs().sum((1, 2, 3))).sqrt()

    said = str(blame_reward(error, rooted, "mine", images, ["a seven"]))
    assert said.startswith("update 5: the gradient is not finite, nor is that of the reward 'mine'")
    assert len(said) <= 300
    for innocent in (mean, lambda images, prompts: torch.zeros(len(images))):
        assert blame_reward(error, innocent, "mine", images, ["a seven"]) is error


def test_a_model_that_puts_out_nan_is_told_from_guidance():
    from scoretune.diffusion import estimates
    from scoretune.diffusion.kernels import GDDIM
    from scoretune.diffusion.processes import VP

    design = Design("mlp", (2,), "points", 8, 1)
    model = ScoreNetwork(design, VP(), estimates.v, torch.zeros(2), torch.ones(2))
    policy = Policy(model, GDDIM(1.0), guidance=1e30)
    guided = lambda: torch.tensor([NAN if policy.guidance > 1 else 0.0])  # noqa: E731
    assert "lower model.guidance (now 1e+30)" in str(blame_model(policy, 0, guided))
    assert policy.guidance == 1e30
    assert "all its weights are finite" in str(blame_model(policy, 0, lambda: torch.tensor([NAN])))
    check_weights(policy, 3)
    name, weight = next(iter(model.network.named_parameters()))
    weight.data.fill_(math.inf)
    with pytest.raises(NonFinite, match=rf"after update 3 1 of .* not finite, {name} first: low"):
        check_weights(policy, 3)
    weight.requires_grad_(False)  # as the weights under an adapter
    assert "get the model anew" in str(blame_model(policy, 0, guided))


def test_a_run_that_diverges_stops_and_says_what_to_lower(tmp_path, small):
    """Two updates at an absurd rate: the first checkpoint is the last."""
    from scoretune.training.run import launch

    run = overrides.changed(recipes.named("ddpo"), [*small, "guard.action=off"])
    absurd = run.optimiser.model_copy(update={"learning_rate": 1e30})  # beyond what settings allow
    run = run.model_copy(update={"optimiser": absurd})
    with pytest.raises(NonFinite, match=r"pretrained model.s do not: lower optimiser\.learning"):
        launch(run, tmp_path / "run", Silent())
    saved = sorted(path.name for path in Path(tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["step-00000001"]
    assert not (tmp_path / "run" / "lora").exists()
