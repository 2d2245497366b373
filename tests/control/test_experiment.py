"""The cells of the experiment on continuous RL."""

from __future__ import annotations

import json
import pickle

from scoretune.commands.reproduce import continuous_rl


def test_cells_are_plain_and_named_apart():
    cells = continuous_rl.cells(5, quick=False)
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) == (4 + 3) * 3 * 5
    assert all(name.isascii() and " " not in name and "/" not in name for name in names)
    assert json.loads(json.dumps([dict(c.arguments) for c in cells]))
    assert pickle.loads(pickle.dumps(cells)) == cells
