"""The experiment's cells and its page."""

from __future__ import annotations

import json
import pickle

from scoretune.commands.reproduce import continuous_rl
from scoretune.commands.reproduce.base import Page, run_cells


def test_cells_are_plain_and_named_apart():
    cells = continuous_rl.cells(5, quick=False)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) == (4 + 3) * 3 * 5
    assert all(name.isascii() and " " not in name and "/" not in name for name in names)
    assert json.loads(json.dumps([dict(c.arguments) for c in cells]))
    assert pickle.loads(pickle.dumps(cells)) == cells


def test_a_quick_run_makes_a_page(tmp_path):
    cells = continuous_rl.cells(2, quick=True)
    wanted = [c for c in cells if "LQ" in c.name or "CPG" in c.name]
    results = run_cells(wanted, tmp_path)
    page = Page(tmp_path, "Continuous RL", "scoretune reproduce continuous-rl")
    numbers = continuous_rl.present(results, page)
    page.write(numbers, 1.0)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| CPG | 0.1 | 2 |" in text and "η* = 0.4516" in text and "η* = 1.0884" in text
    assert {p.name for p in tmp_path.glob("*.svg")} == {"curves.svg", "parameters.svg"}
    assert len(numbers["arms"]) == 5
    arm = numbers["arms"][0]
    assert (arm["problem"], arm["method"], arm["dt"], arm["seeds"]) == ("LQ", "CPG", 0.1, 2)
    assert arm["gap"]["interval"][0] <= arm["gap"]["mean"] <= arm["gap"]["interval"][1]
    json.dumps(numbers, allow_nan=False)
