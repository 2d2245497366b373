"""The table of presets in docs/methods.md says what the presets are.

SCORETUNE_FREEZE=1 writes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from scoretune.preference import PRESETS, Preset

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- presets, written by tests/preference/test_methods_page.py -->\n", "<!-- end -->"
HEAD = (
    "| preset | source | f | per token | α | margin | c(x) | SFT | what else | needs |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


def margin(preset: Preset) -> str:
    parts = []
    if preset.home_advantage:
        parts.append(f"β·{preset.home_advantage:g}")
    if preset.target_margin:
        parts.append(f"{preset.target_margin:g}")
    if preset.offset:
        parts.append("of each pair")
    if preset.length_penalty:
        parts.append(f"−{preset.length_penalty:g}·(n_w − n_l)")
    asked = " + ".join(parts) or "0"
    return f"(1 − α)·{asked}" if preset.mixing else asked


def others(preset: Preset) -> str:
    """What the columns do not say."""
    parts = []
    if preset.divergence != "reverse_kl":
        number = f" {preset.divergence_parameter:g}" if preset.divergence == "alpha" else ""
        parts.append(f"score `{preset.divergence}`{number}")
    for term in preset.terms:
        sign, side = "−" if term.sign < 0 else "", term.side[0].replace("c", "w").replace("r", "l")
        weight = "" if term.weight == 1 else f"{term.weight:g}·"
        parts.append(f"{weight}`{term.link}`({sign}u_{side})")
    if preset.link_parameter:
        parts.append(f"parameter {preset.link_parameter:g}")
    if preset.chosen_floor:
        parts.append(f"− β·{preset.chosen_floor:g}·max(0, ℓ_w^ref − ℓ_w)")
    if preset.label_smoothing:
        kind = "undone" if preset.debiased else "smoothed"
        parts.append(f"label noise {preset.label_smoothing:g}, {kind}")
    if preset.reference_update == "soft":
        share, every = preset.reference_share, preset.reference_every
        parts.append(f"the reference moves by {share:g} every {every} updates")
    if preset.reference_update == "stage":
        parts.append("the reference is the last stage's policy")
    flags = {
        "weighted": "weight of each pair",
        "beta_outside": "β multiplies f instead of z",
        "resampled": "pairs by rejection sampling",
        "baseline": "β·KL is subtracted",
    }
    return "; ".join(parts + [said for flag, said in flags.items() if getattr(preset, flag)])


def needs(preset: Preset) -> str:
    wanted = {
        "reference": preset.needs_reference,
        "lengths": preset.needs_lengths,
        "scale": preset.needs_scale,
        "margin": preset.offset,
        "weight": preset.weighted,
        "baseline": preset.baseline,
    }
    return ", ".join(name for name, is_needed in wanted.items() if is_needed)


def row(name: str, preset: Preset) -> str:
    kinds = {None: "1", "dispersion": "dispersion", "batch": "batch", "phi": "φ of the link"}
    sft = f"{preset.sft_weight:g}" + (" per token" if preset.sft_per_token else "")
    f = f"`{preset.link}`" if preset.link else "–"
    cells = (
        f"`{name}`",
        preset.source,
        f"{f} of ±u" if preset.kind == "single" else f,
        "yes" if preset.length_normalised else "no",
        f"{preset.reference_weight:g}",
        margin(preset),
        kinds[preset.scaling],
        sft if preset.sft_weight else "0",
        others(preset),
        needs(preset),
    )
    return "| " + " | ".join(cells) + " |\n"


def table() -> str:
    return HEAD + "".join(row(name, preset) for name, preset in PRESETS.items())


def test_the_table_of_presets_is_what_they_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    kept, _, after = rest.partition(END)
    if os.environ.get("SCORETUNE_FREEZE"):
        PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
        return
    assert kept == table(), "SCORETUNE_FREEZE=1 pytest tests/preference/test_methods_page.py"


def test_no_two_presets_have_one_row() -> None:
    rows = [row("", preset) for preset in PRESETS.values()]
    assert len(set(rows)) == len(rows)
