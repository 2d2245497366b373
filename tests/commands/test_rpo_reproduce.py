"""What the studies of Rich Preference Optimization learn from: as many pairs, rightly sorted."""

from __future__ import annotations

import pytest
import torch

from scoretune.commands.reproduce import patch_rewards, patch_world, rpo_patches, rpo_scenes
from scoretune.commands.reproduce.patch_pairs import LEAST_GAIN


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """As many as the study has; each two of a prompt, which they follow loosely."""
    generator, rows = torch.Generator().manual_seed(0), []
    images, prompts = patch_world.pictures(3 * rpo_patches.PICTURES, generator)
    for place in range(rpo_patches.PICTURES):
        wanted = patch_world.PROMPTS[(place // 2) % 3]
        row = prompts.index(wanted)
        prompts[row] = ""
        rows.append(row)
    return images[rows]


@pytest.mark.parametrize("label", rpo_patches.ARMS)
def test_every_arm_has_its_pairs(label, pictures):
    arm = rpo_patches.ARMS[label]
    made, accepted = rpo_patches.pairs(arm, pictures, 1, torch.Generator().manual_seed(0))
    assert len(made.better) == len(made.worse) == len(made.prompts) == arm.plain + arm.edits
    better, worse = (patch_world.reward(side, made.prompts) for side in made[:2])
    lead = better - worse
    assert bool((lead[: arm.plain] >= 0).all())
    lost = float((lead[arm.plain :] <= LEAST_GAIN).float().mean()) if arm.edits else 0.0
    if arm.filtered:
        assert lost == 0
    else:
        assert lost > arm.failing / 2  # of what noise makes, a little is better by chance
    assert accepted == pytest.approx(1 - arm.failing, abs=0.12)


def test_too_few_edits_are_an_error(pictures):
    with pytest.raises(ValueError, match="take more pictures"):
        rpo_patches.pairs(rpo_patches.Arm(edits=150), pictures[:60], 1, torch.Generator())


def test_the_arms_on_scenes_say_what_they_learn_from():
    cells = rpo_scenes.cells(2, quick=False)
    assert len({cell.name for cell in cells}) == len(cells) == 2 * (1 + len(rpo_scenes.ARMS))
    sizes = {label: arm.plain + arm.edits for label, arm in rpo_scenes.ARMS.items()}
    assert set(sizes.values()) == {1}


def test_the_shift_at_a_reward_lies_on_a_line_between_evaluations():
    curve = [
        {"reward": 0.1, "shift": 0.0},
        {"reward": 0.3, "shift": 0.08},
        {"reward": 0.2, "shift": 0.2},
    ]
    assert patch_rewards.shift_at(curve, 0.15) == pytest.approx(0.02)
    assert patch_rewards.shift_at(curve, 0.3) == pytest.approx(0.08)
    assert patch_rewards.shift_at(curve, 0.4) is None
    assert patch_rewards.shift_at([curve[0], curve[0]], 0.1) == 0.0
