"""The map of the survey in docs/methods.md: every name that it calls ours is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from scoretune.core.config import Preference, StepPreference
from scoretune.preference import PRESETS
from scoretune.recipes import RECIPES

TEXT = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## The survey's methods")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.splitlines()
    if line.startswith("| ")
][1:]
METHODS = """
RLHF; Constitutional; P3O, pairwise; PTR-PPO; MaxMin; Multilingual; RLHF-V; ReMax; RLOO; GRPO;
OAIF; Iterative; OPTune; RRHF; RAFT; ReST; SuperHF; NLHF; SPPO; DDPO; DPOK; ReFL; DRaFT;
AlignProp; PRDP; DLPO; HIVE; LLaVA-RLHF; DPO; IPO; RSO; f-DPO; KTO; ODPO; Mallows-DPO; R-DPO;
CPO; ORPO; SimPO; RainbowPO; PRO; sDPO; rDPO; ALLO; VPO; SLiC-HF; Diffusion-DPO; POVID; BPPO;
ExPO; P3O, on; RTO; D3PO; SPO; DSPO; Diffusion-KTO
"""


def named(cell: str, kind: str) -> list[str]:
    """The names in backticks that follow the word, as in: presets `a` (…), `b`."""
    listed = re.findall(rf"{kind}s? ((?:`[\w.]+`(?: \([^)]*\))?(?:, | and )?)+)", cell)
    return [name for part in listed for name in re.findall(r"`([\w.]+)`", part)]


def test_every_method_of_the_survey_has_its_row():
    wanted = [name.strip() for name in METHODS.split(";")]
    assert len(ROWS) == len(wanted)
    for (method, *_), name in zip(ROWS, wanted, strict=True):
        assert method.startswith(name), (method, name)


def test_what_is_called_ours_is_there():
    for method, loss, data, modality, ours in ROWS:
        assert loss, method
        assert data, method
        assert modality, method
        recipes, presets = named(ours, "recipe"), named(ours, "preset")
        formulas = named(ours, "formula")
        assert set(recipes) <= RECIPES.keys(), method
        assert set(presets) <= PRESETS.keys(), method
        for place in formulas:
            module, name = place.split(".")
            assert callable(
                getattr(importlib.import_module(f"scoretune.preference.{module}"), name)
            )
        if not (recipes or presets or formulas or "`reward=`" in ours):
            assert re.search(r"not ours[:,] \w", ours), method


def test_every_recipe_on_preferences_is_in_it():
    kinds = (Preference, StepPreference)
    ours = {name for name, recipe in RECIPES.items() if isinstance(recipe().objective, kinds)}
    assert ours <= {name for *_, cell in ROWS for name in named(cell, "recipe")}
