"""The model card and `scoretune export`: what a run says of itself to those who never saw it."""

from __future__ import annotations

import ast
import html
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCard, metadata_load
from safetensors.torch import load_file

from scoretune.commands import export as export_verb
from scoretune.core.errors import UserError
from scoretune.evaluate.report.record import read_record
from scoretune.models import export
from scoretune.rewards import catalog
from scoretune.training import card, run_folder
from slow_cases import quick_ones

FLUX = ("transformer", "tokenizer")


@pytest.fixture(scope="module")
def real(finished_run) -> Path:
    return finished_run


@pytest.fixture
def run(real, tmp_path) -> Path:
    shutil.copytree(real, tmp_path / "run")
    return tmp_path / "run"


def measured(folder: Path) -> str:
    return card.measured(read_record(folder))


def edited(folder: Path, name: str, **values: object) -> dict:
    path = folder / name
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps(content))
    return content


def of_source(folder: Path, source: str) -> None:
    """The same run as if it had begun from another model."""
    config = json.loads((folder / "run.json").read_text())["config"]
    config["model"]["source"] = source
    edited(folder, "run.json", config=config)


def code_of(text: str) -> str:
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_hub_reads_the_front_matter(run, monkeypatch):
    of_source(run, "org/base")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["a", "b"], "tokenizer": ["a", "b"]}
    monkeypatch.setattr(card.folders, "described", lambda source, revision: index)
    path = card.write(run)
    assert path == run / "lora" / "README.md"
    data = metadata_load(path)
    (model,) = data.pop("model-index")
    result = json.loads((run / "result.json").read_text())
    assert model["name"] == "ddpo on org/base"
    (results,) = model["results"]
    assert results["task"]["type"] == "text-to-image"
    metrics = {metric["type"]: metric["value"] for metric in results["metrics"]}
    assert metrics["judge_accuracy"] == result["judge"]["final"]["overall"]
    assert metrics["reward_deterministic_sampler"] == result["reward"]["deterministic"]
    assert data == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["scoretune", "ddpo", "lora"],
    }
    loaded = ModelCard.load(path).data
    assert loaded.base_model == "org/base"
    assert {one.metric_type for one in loaded.eval_results} == metrics.keys()
    assert "# license: yours to choose" in path.read_text()
    whole = metadata_load(card.write(run, run / "whole", "merged"))
    assert whole["base_model_relation"] == "finetune"
    assert whole["tags"] == ["scoretune", "ddpo"]


def test_a_base_that_is_not_on_the_hub_is_no_base_model(run):
    assert "base_model" not in metadata_load(card.write(run))


def test_the_numbers_are_the_runs(run):
    result = json.loads((run / "result.json").read_text())
    text = card.write(run).read_text()
    base, final = (result["judge"][end]["overall"] for end in ("base", "final"))
    gain = result["gain"]["judge"]
    row = next(line for line in text.splitlines() if line.startswith("| judge accuracy"))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[:2] == [f"{base:.3g}", f"{final:.3g}"]
    assert [float(n) for n in re.findall(r"[-+]?[\d.]+", cells[2])] == pytest.approx(
        [gain["mean"], gain["low"], gain["high"]], abs=1e-3
    )
    assert "rang no alarm" in text
    assert "No independent judge" not in text
    assert f"{result['network_evaluations']} network evaluations" in text
    assert f"| seed | {run_folder.recorded(run).seed} |" in text
    assert json.loads((run / "run.json").read_text())["command"] in text
    identity = catalog.fingerprint("reader", catalog.named_reward("reader"))["parts"][0]["sha256"]
    assert identity in text


def test_prompts_that_were_not_held_out_are_not_called_so(run, monkeypatch):
    assert "| prompts of the evaluation | `scenes-held-out` |" in card.write(run).read_text()
    of_source(run, "org/base")
    monkeypatch.setattr(card.folders, "described", lambda source, revision: {})
    assert "those of training: nothing was held out" in card.write(run).read_text()


def test_alarms_and_the_gap_are_told(run):
    alarms = [{"update": 2, "watch": "judge", "text": "the judge fell by 0.2"}]
    guard = {"action": "rollback", "alarms": alarms, "ended": 2, "kept": 1}
    gap = {"final": {"mean": 0.25, "low": 0.125, "high": 0.375, "steps": 3, "eta": 1.0}}
    edited(run, "result.json", guard=guard, gap=gap, judge=None)
    text = measured(run)
    assert "- at update 2: the judge fell by 0.2" in text
    assert "It ended the run at update 2.\nThe weights are those of update 1" in text
    assert "the reward is +0.25 (+0.125 to +0.375) from that of the ODE" in text
    assert "No independent judge looked at the pictures" in text
    edited(run, "result.json", guard={"action": "off", "alarms": []})
    assert "No guard watched over the run." in measured(run)


def test_small_changes_are_told_and_nothing_is_minus_zero(run):
    result = json.loads((run / "result.json").read_text())
    small = {"mean": 0.0006123, "low": -0.0, "high": 0.0016}
    changed = {"reward_base": {"deterministic": 0.1225}, "reward": {"deterministic": 0.1231}}
    edited(run, "result.json", gain=result["gain"] | {"reward": small}, **changed)
    row = "| reward, deterministic sampler | 0.122 | 0.123 | +0.000612 (0 to +0.0016) |"
    assert row in measured(run)


def test_a_run_that_has_not_ended_claims_nothing(run):
    (run / "result.json").unlink()
    text = measured(run)
    assert text == "The run has not ended, so there is no result."


def test_a_reward_that_is_recorded_is_not_looked_up_again(run):
    edited(run, "run.json", reward={"parts": [{"name": "reader", "sha256": "abc"}]})
    text = card.write(run).read_text()
    assert '`{"name": "reader", "sha256": "abc"}`' in text
    assert "when this card was written" not in text


@pytest.mark.parametrize("form", quick_ones([*export.FORMS, "merged"], "peft", "merged"))
def test_the_code_of_the_card_runs(run, tmp_path, form, monkeypatch):
    folder = tmp_path / "out"
    policy = run_folder.load(run)
    if form == "merged":
        from scoretune.models.export import merge

        merge(policy, run_folder.recorded(run).model, folder)
    else:
        export.write(policy, folder, form)
    text = card.write(run, folder, form).read_text()
    code = code_of(text)
    assert "guidance_scale=2.5" in code
    assert "num_inference_steps=2" in code
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(compile(ast.parse(code), "card", "exec"), names)
    assert names["picture"].size == (32, 32)
    state = names["pipe"].unet.state_dict()
    assert any("lora_A" in name for name in state) is (form != "merged")


@pytest.mark.parametrize(
    ("kind", "form", "parts", "expected"),
    [
        ("FluxPipeline", "diffusers", FLUX, "pipe.load_lora_weights(here)"),
        ("FluxPipeline", "kohya", FLUX, 'load_lora_weights(here, weight_name="lora_kohya.safet'),
        ("StableDiffusion3Pipeline", "kohya", FLUX, "scoretune.load_lora(pipe.transformer, here)"),
        (
            "DiTPipeline",
            "diffusers",
            ("transformer",),
            "scoretune.load_lora(pipe.transformer, here)",
        ),
        ("DDPMPipeline", "diffusers", ("unet",), "scoretune.load_lora(pipe.unet, here)"),
    ],
)
def test_other_pipelines_are_called_as_they_want_it(run, monkeypatch, kind, form, parts, expected):
    of_source(run, "org/base")
    index = {"_class_name": kind} | {part: ["diffusers", "X"] for part in parts}
    monkeypatch.setattr(card.folders, "described", lambda source, revision: index)
    index["image_encoder"] = [None, None]
    code = code_of(card.write(run, run / "out", form).read_text())
    ast.parse(code)
    assert f'pipe = {kind}.from_pretrained("org/base", image_encoder=None)' in code
    assert expected in code
    assert ('"a prompt"' in code) == ("tokenizer" in parts)
    assert ("class_labels" in code) == (kind == "DiTPipeline")


# ------------------------------------------------------------------------------ the verb


def test_the_command_exports_a_form_with_its_card(command, run, tmp_path):
    loading = {
        "diffusers": "pipe.load_lora_weights({})",
        "peft": "pipe.unet = PeftModel.from_pretrained(pipe.unet, {})",
        "kohya": 'pipe.load_lora_weights({}, weight_name="lora_kohya.safetensors")',
    }
    for form, file in [
        ("diffusers", "pytorch_lora_weights"),
        ("peft", "adapter_model"),
        ("kohya", "lora_kohya"),
    ]:
        done = command("export", run, "--to", tmp_path / form, "--format", form)
        assert done.code == 0, done.err
        line = loading[form].format(repr(str(tmp_path / form)))
        assert done.out.splitlines() == [f"{form} in {tmp_path / form}", f"load it by: {line}"]
        assert len(load_file(tmp_path / form / f"{file}.safetensors")) > 0
        assert (tmp_path / form / "README.md").is_file()
    own = load_file(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    written = load_file(run / "lora" / "pytorch_lora_weights.safetensors")
    assert own.keys() == written.keys()
    assert all(torch.equal(own[name], written[name]) for name in own)


def test_the_command_merges_and_uploads(command, run, tmp_path, monkeypatch):
    calls: list = []

    class Hub:
        def create_repo(self, name, *, private, exist_ok):
            return calls.append((name, private)) or f"https://hub/{name}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, Path(folder_path).name))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    flags = ("--merge", "--push", "org/name", "--json")
    refused = command("export", run, *flags)
    assert refused.code == 2
    assert "HF_HUB_OFFLINE is set" in refused.err
    assert not (run / "export").exists()
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    done = command("export", run, *flags)
    assert done.code == 0, done.err
    folder = run / "export" / "merged"
    expected = {"folder": str(folder), "form": "merged", "url": "https://hub/org/name"}
    assert json.loads(done.out) == expected
    assert calls == [("org/name", True), ("org/name", "merged")]
    line = export_verb._loading(folder / "README.md", folder)
    assert line.startswith("pipe = ") and f".from_pretrained({str(folder)!r}" in line
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    own = run_folder.load(run).backbone.network.state_dict()
    kept = "mid_block.resnets.0.conv1.weight"
    assert torch.equal(pipe.unet.state_dict()[kept], own[kept])


def test_what_cannot_be_exported_is_a_line(command, run, tmp_path):
    (tmp_path / "new").mkdir()
    for words, message in [
        ((run, "--format", "pefd"), "did you mean 'peft'"),
        ((run, "--public"), "--public is about --push"),
        ((tmp_path / "new",), "is no run folder"),
        ((run, "--merge", "--to", run), "is not empty"),
    ]:
        refused = command("export", *words)
        assert refused.code == 2, words
        assert message in refused.err
        assert refused.err.count("\n") == 1
    with pytest.raises(UserError, match="cannot write"):
        card.write(run, run / "run.json" / "below")


@pytest.mark.parametrize("text", ["a`b", "<script>alert(1)</script>", "a\x1b[2Jb", "``` "])
def test_no_text_leaves_its_code_span(text):
    span = card.code(text)
    inner = span.removeprefix("<code>").removesuffix("</code>")
    assert inner != span or span == f"`{text.encode('unicode_escape').decode()}`"
    assert not set("<>\x1b") & set(inner) and "`" not in inner[1:-1]
    assert card.code("runs/mine") == "`runs/mine`"
    assert html.unescape(card.code("a<b> | `c`")) == "<code>a<b> | `c`</code>"


def test_a_card_of_a_hostile_run_holds_no_html_of_its(run):
    config = json.loads((run / "run.json").read_text())["config"]
    config |= {"prompts": "<script>a</script>", "data": "`<b>`"}
    config["evaluation"]["prompts"] = "```\n".strip() + "<i>"
    edited(run, "run.json", config=config, command="scoretune ```\n<u>")
    text = card.write(run).read_text()
    outside = re.sub(r"```.*?```", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert not re.search(r"<(script|b|i|u)>", outside)
