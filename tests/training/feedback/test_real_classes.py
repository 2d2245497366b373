"""The whole of `scoretune rpo` on classes of transformers and diffusers with tiny random weights.

Each vision-language model can say nothing but its few answers, and picks one by what it sees.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

import tiny_readers
from scoretune.data.store import open_store
from scoretune.models.tiny import flux, stable_diffusion

ANSWERS = [
    json.dumps(
        {"alignment": level, "issues": [{"what": "dark"}], "instructions": [text]},
        separators=(",", ":"),
    )
    for level, text in enumerate(("a bright sky", "a red circle", "a blue square"))
]
PROMPTS = ["a red circle", "a dark sky", "a blue square", "a bright red sea"]


def pix2pix():
    import diffusers

    plain = stable_diffusion.pipeline(diffusers.DDIMScheduler(clip_sample=False))
    torch.manual_seed(1)
    wide = diffusers.UNet2DConditionModel.from_config({**plain.unet.config, "in_channels": 8})
    parts = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    return diffusers.StableDiffusionInstructPix2PixPipeline(
        **parts | {"unet": wide}, requires_safety_checker=False
    )


def kontext():
    import diffusers

    return diffusers.FluxKontextPipeline(**flux.pipeline().components)


CASES = {
    "llava, instruct_pix2pix": (tiny_readers.llava, "instruct_pix2pix", pix2pix, True),
    "qwen, kontext": (tiny_readers.qwen, "kontext", kontext, False),
}


@pytest.mark.parametrize(
    "case", [pytest.param("llava, instruct_pix2pix", marks=pytest.mark.slow), "qwen, kontext"]
)
def test_critique_edit_filter_pairs_and_a_step_of_dpo(case, command, tmp_path):
    reader, name, editor, trains = CASES[case]
    critic = reader(tmp_path / "reader", ANSWERS)
    editor().save_pretrained(tmp_path / "editor")
    model = stable_diffusion.build(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    done = command(
        *("rpo", model, f"prompts={tmp_path}/prompts.txt", "pictures=4", "reversed=true"),
        *(f"critic=vlm(model={critic}, tokens=2, batch=2)", "most=1"),
        f"editor={name}(model={tmp_path}/editor, steps=1, batch=2)",
        *("reward=small_model:bright", "updates=1", "sizes.batch=2", "evaluation.steps=2"),
        *("model.rank=2", "evaluation.gap.steps=[]", "evaluation.every=0"),
        *("--run", tmp_path / "run", "--json", *([] if trains else ["--pairs-only"])),
    )
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    summary = result["rpo"]
    assert summary["critiques"]["read"] == summary["edits"] == len(PROMPTS)
    outcomes = summary["verdicts"]
    assert summary["pairs"] == outcomes.get("better", 0) + outcomes.get("worse", 0)
    store = open_store(str(tmp_path / "run" / "store"))
    assert len(store.pairs(source="rpo-edit")) == summary["pairs"] > 0
    assert {edit.instructions[0] for edit in store.edits()} <= {
        json.loads(answer)["instructions"][0] for answer in ANSWERS
    }
    if trains:
        (line,) = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(line)["optimiser_steps"] == 1
        assert json.loads(line)["loss"] == pytest.approx(math.log(2), abs=1e-5)  # it begins equal
        assert result["training"]["wins"]
