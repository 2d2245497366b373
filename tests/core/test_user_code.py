"""A user's code gets copies, and cannot end the run, double it or move it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.resolve import imported
from scoretune.core.user_code import contained
from scoretune.rewards.base import checked


def test_what_a_reward_writes_into_its_images_nobody_sees():
    images = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    prompts = ["a", "b"]

    def vandal(images: Tensor, prompts: Any) -> Tensor:
        values = images.mean((1, 2, 3))
        with torch.no_grad():
            images.zero_()
        prompts.clear()
        return values

    values = checked(vandal, "mine", images, prompts)
    assert bool((images == 0.5).all()) and prompts == ["a", "b"]
    (gradient,) = torch.autograd.grad(values.sum(), images)
    torch.testing.assert_close(gradient, torch.full_like(images, 1 / 48))


def test_it_cannot_end_the_run():
    for code in (0, 1, "enough", None):

        def leave(images: Tensor, prompts: Any, code: Any = code) -> Tensor:
            sys.exit(code)

        with pytest.raises(UserError, match=rf"reward 'mine' called sys.exit\({code!r}\)"):
            checked(leave, "mine", torch.zeros(1, 3, 2, 2), ["a"])


def test_it_cannot_move_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contained("mine"):
        os.chdir("/")
    assert Path.cwd() == tmp_path

    def moves(images: Tensor, prompts: Any) -> Tensor:
        os.chdir("/")
        raise ValueError("and fails")

    with pytest.raises(UserError, match="and fails"):
        checked(moves, "mine", torch.zeros(1, 3, 2, 2), ["a"])
    assert Path.cwd() == tmp_path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_comes_back_ends_where_it_was_made(tmp_path, capfd):
    for ending, code in (("returns", 1), ("exits", 7)):
        children: list[int] = []
        with contained("reward 'mine'"):
            children.append(os.fork())
            if not children[0] and ending == "exits":
                sys.exit(7)
        assert children[0], "only the parent comes here"
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == code
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "reward 'mine' forked a process that came back" in said[0]


def test_importing_it_cannot_end_or_move_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("moves.py").write_text("import os\nos.chdir('/')\ndef of(images, prompts): ...\n")
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    assert imported("reward", "moves.py:of").__name__ == "of"
    assert Path.cwd() == tmp_path
    with pytest.raises(UserError, match=r"importing the reward 'leaves.py:of' called sys.exit"):
        imported("reward", "leaves.py:of")


def test_a_file_that_a_module_hides_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("colorsys.py").write_text("def of(images, prompts): ...\n")
    with pytest.raises(UserError, match=r"colorsys.py in this folder is hidden by .*colorsys.py:F"):
        imported("reward", "colorsys:of")
    assert imported("reward", "colorsys.py:of").__name__ == "of"
    Path("scoretune_test_own.py").write_text("def of(images, prompts): ...\n")
    assert imported("reward", "scoretune_test_own:of").__name__ == "of"


def test_a_judge_that_is_no_judge_is_not_mended_by_installing(tmp_path):
    from scoretune.core.files import save_tensors
    from scoretune.rewards import reader

    (tmp_path / "judge.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"cannot read the judge .*give a folder that") as caught:
        reader.load(tmp_path, "judge")
    assert "reinstall" not in str(caught.value)
    save_tensors(tmp_path / "reader.safetensors", {"other": torch.zeros(1)})
    with pytest.raises(UserError, match="is none of scoretune's: give a folder that"):
        reader.load(tmp_path, "reader")
