"""Settings that fit a family of pretrained models: what they go over, and what goes over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scoretune import recipes
from scoretune.core import model_folder
from scoretune.core.config import Run, leaves
from scoretune.core.config.families import DEFAULTS, OURS
from scoretune.core.config.sampling import Sampling, Sizes
from scoretune.models import catalog
from scoretune.training import overrides, settings_file

KIND = "StableDiffusion3Pipeline"


def pipeline(folder: Path, kind: str = "StableDiffusion3Pipeline", size: int = 2**28) -> Path:
    """A folder as of a pipeline whose denoiser has so many bytes, none of them written."""
    part = folder / "transformer"
    part.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with (part / "diffusion_pytorch_model.safetensors").open("wb") as weights:
        weights.truncate(size)
    return folder


def shown(recipe: str, *changes: str) -> tuple[dict[str, object], dict[str, str]]:
    run = settings_file.named(recipe, changes)
    return dict(leaves(run.model_dump())), settings_file.origins(recipe, changes)


def test_a_familys_settings_go_over_the_recipes_and_below_peoples(tmp_path):
    source = f"model.source={pipeline(tmp_path / 'model')}"
    values, origins = shown("ddpo", source, "model.guidance=3")
    assert values["optimiser.learning_rate"] == 3e-4 and values["model.precision"] == "bf16"
    assert (values["model.size"], values["model.rank"], values["sizes.group"]) == (512, 32, 24)
    assert values["model.guidance"] == 3
    assert origins["model.guidance"] == origins["model.source"] == "command line"
    assert origins["optimiser.learning_rate"].startswith("family (Flow-GRPO")
    assert origins["seed"] == "default"
    assert set(origins.values()) <= {"default", "recipe", "command line", origins["model.size"]}
    assert set(origins) == set(values)


def test_a_file_goes_over_the_family(tmp_path):
    folder, file = pipeline(tmp_path / "model"), tmp_path / "mine.yaml"
    file.write_text(f"recipe: ddpo\nmodel:\n  source: {folder}\n  rank: 8\n")
    values, origins = shown(str(file))
    assert values["model.rank"] == 8 and origins["model.rank"] == "file"
    assert values["model.size"] == 512


def test_what_a_method_says_of_a_round_stays(tmp_path):
    source = f"model.source={pipeline(tmp_path / 'model')}"
    for name in recipes.RECIPES:
        plain, run = recipes.named(name), settings_file.named(name, [source])
        for path, value in OURS.items():
            before, after = (dict(leaves(r.model_dump()))[path] for r in (plain, run))
            assert before == value or after == before, (name, path)
        assert run.optimiser.learning_rate <= 3e-4, name


def test_all_weights_learn_slower_and_in_float32(tmp_path):
    source = f"model.source={pipeline(tmp_path / 'model')}"
    run = settings_file.named("ddpo", [source, "model.rank=0"])
    assert run.optimiser.learning_rate == pytest.approx(3e-5)
    assert (run.model.rank, run.model.precision) == (0, "fp32")


def test_of_a_miniature_they_say_nothing(tmp_path):
    small = pipeline(tmp_path / "small", size=2**20)
    assert model_folder.pipeline_class(str(small)) is None
    here, there = (
        settings_file.named("ddpo"),
        settings_file.named("ddpo", [f"model.source={small}"]),
    )
    assert there.model.source == str(small)
    assert there.optimiser == here.optimiser and there.sampling == here.sampling


def test_below_a_run_is_the_model_that_it_began_with(tmp_path):
    folder = pipeline(tmp_path / "model")
    run = settings_file.named("ddpo", [f"model.source={folder}"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": run.model_dump()}))
    assert model_folder.pipeline_class(str(tmp_path / "run")) == "StableDiffusion3Pipeline"
    again = settings_file.named("ddpo", [f"model.source={tmp_path / 'run'}"])
    assert again.optimiser.learning_rate == 3e-4


def test_settings_far_from_the_familys_are_named(tmp_path):
    source = f"model.source={pipeline(tmp_path / 'model')}"
    assert overrides.unusual(settings_file.named("ddpo", [source])) == []
    far = settings_file.named(
        "ddpo", [source, "optimiser.learning_rate=0.006", "model.guidance=40"]
    )
    assert overrides.unusual(far) == [
        "optimiser.learning_rate=0.006 is 20 times the 0.0003 that fits this family "
        f"({DEFAULTS[KIND].source})"
    ]
    assert overrides.unusual(settings_file.named("ddpo")) == []


def test_what_is_no_pipeline_has_no_family(tmp_path):
    (tmp_path / "model_index.json").write_text("no JSON")
    assert model_folder.pipeline_class(str(tmp_path)) is None
    assert model_folder.pipeline_class("scenes") is None


def test_the_table_names_families_and_settings_that_there_are(tmp_path):
    assert DEFAULTS.keys() <= catalog.FAMILIES.keys()
    assert (Sampling().steps, Sizes().prompts, Sizes().group) == tuple(OURS.values())
    for kind, defaults in DEFAULTS.items():
        folder = pipeline(tmp_path / kind, kind)
        for full in (True, False):
            settings = dict(defaults.settings(full))
            run: Run = settings_file.named(
                "ddpo", [f"model.source={folder}", *(["model.rank=0"] if full else [])]
            )
            values = dict(leaves(run.model_dump()))
            assert {path: values[path] for path in settings} == settings
        assert defaults.source and defaults.learning_rate <= 3e-4


def test_a_hub_id_that_nothing_tells_of_is_said_to_keep_the_recipes_settings(command):
    source = "model.source=nobody/nothing-of-that-name"
    (line,) = overrides.unusual(settings_file.named("ddpo", [source]))
    assert "nobody/nothing-of-that-name is not in the cache" in line and "\n" not in line
    done = command("show", "ddpo", source)
    assert done.code == 0 and done.err.count("nobody/nothing-of-that-name") == 1
    assert not command("show", "ddpo").err
