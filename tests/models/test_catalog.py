"""What a `model.source` is: a shipped name, a folder, a hub id, a function, or a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import scoretune
from scoretune import recipes
from scoretune.commands.plan import meta_device
from scoretune.core import checkpoints
from scoretune.core.config import Model, Run
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.diffusion.processes import VE, VP
from scoretune.models import catalog, export, score_network
from scoretune.models.lora import adapter_state
from scoretune.models.networks import Design
from scoretune.models.recycled import Recycled
from scoretune.models.tiny import own, stable_diffusion, stable_diffusion_3
from scoretune.models.tiny.words import PROMPTS
from scoretune.policy import Backbone, Policy, adapter_layers
from scoretune.training import build, run, run_folder
from scoretune.training.overrides import changed
from slow_cases import slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return stable_diffusion.build(tmp_path_factory.mktemp("model"))


def run_of(*changes: str) -> Run:
    return changed(recipes.named("ddpo"), ["reward=brightness", "prompts=none", *changes])


def finished(run: Run, folder: Path, seed: int = 1) -> Policy:
    """A run folder as training leaves it, of weights that were moved at random."""
    policy = build.build_policy(run, CPU)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter_state(policy.backbone.network).items():
        if "lora_A" not in name:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    state = {"policy": adapter_state(policy.backbone.network)}
    checkpoints.save(folder / "checkpoints", 2, state)
    run_folder.record(run, folder, threads=1)
    if run.model.rank:
        export.lora(policy, folder / "lora")
    return policy


def predicted(backbone: Backbone) -> torch.Tensor:
    x = torch.randn(2, *backbone.shape, generator=torch.Generator().manual_seed(3))
    t = torch.full((2,), 0.4 * backbone.process.horizon)
    with torch.no_grad():
        return backbone.predict(x, t, backbone.encode(PROMPTS[:2]).tokens).float()


def loaded(source: object, **settings: object) -> Backbone:
    return catalog.load_backbone(Model(source=str(source), **settings))


# ------------------------------------------------------------------------------ what it is


def test_what_sources_are(folder, tmp_path):
    shipped = catalog.resolve("scenes-flow")
    assert (shipped.kind, shipped.shipped) == ("pipeline", True)
    assert shipped.where == str(scoretune.shipped("scenes-flow"))
    with pytest.raises(UserError, match="unknown shipped model 'scene': did you mean 'scenes'"):
        scoretune.shipped("scene")
    assert shipped.world == world.shipped()  # where the reader and the judge are
    for source in (str(folder), "org/name", "nowhere"):
        assert catalog.resolve(source) == catalog.Resolved(source, "pipeline", source)
    function = catalog.resolve(own.SOURCE)
    assert (function.kind, function.where, function.shipped) == ("function", own.SOURCE, False)
    run_folder.record(run_of("model.rank=2"), tmp_path / "one", threads=1)
    run_folder.record(run_of(f"model.source={tmp_path / 'one'}"), tmp_path / "two", threads=1)
    two = catalog.resolve(str(tmp_path / "two"))
    assert (two.source, two.kind, two.where) == ("scenes", "pipeline", str(world.shipped()))
    assert [each.folder.name for each in two.runs] == ["one", "two"]
    assert two.shipped and two.world == world.shipped()


def test_a_run_on_data_is_its_network(tmp_path):
    design = Design("mlp", (2,), "points", 0, 0)
    zero = torch.zeros(1)
    network = score_network.ScoreNetwork(
        design, VP(), build.build_policy(run_of(), CPU).backbone.prediction, zero, zero + 1
    )
    score_network.save(network, tmp_path / "model")
    found = catalog.resolve(str(tmp_path))
    assert (found.kind, found.where) == ("score network", str(tmp_path / "model"))


def test_settings_of_the_model_below(tmp_path):
    first = Model(source="org/base", revision="v1", size=64, without=("vae",), process="VP()")
    done = catalog.FinishedRun(tmp_path, first)
    source = catalog.Resolved("org/base", "pipeline", "org/base", (done,))
    given = Model(source="RUN", precision="bf16", rank=3, without=("text_encoder",))
    settings = source.settings(given)
    assert (settings.source, settings.revision, settings.size) == ("org/base", "v1", 64)
    assert (settings.process, settings.without) == ("VP()", ("vae", "text_encoder"))
    assert (settings.precision, settings.rank) == ("bf16", 3)
    again = source.settings(given.model_copy(update={"size": 32, "process": "VE()"}))
    assert (again.size, again.process) == (32, "VE()")


# --------------------------------------------------------------------- a run as the base model


@pytest.mark.parametrize("make", [stable_diffusion.build, slow(stable_diffusion_3.build)])
def test_what_a_lora_learned_is_in_the_weights(tmp_path, make):
    where = make(tmp_path / "model")
    tuned = finished(run_of(f"model.source={where}", "model.rank=2"), tmp_path / "run")
    base = loaded(tmp_path / "run")
    assert not adapter_layers(base.network)
    assert not any(p.requires_grad for p in base.network.parameters())
    names = loaded(where).network.state_dict().keys()
    assert base.network.state_dict().keys() == names
    expected = predicted(tuned.backbone)
    torch.testing.assert_close(predicted(base), expected, rtol=0, atol=1e-5)
    assert float((expected - predicted(loaded(where))).abs().max()) > 1e-2
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # the exported LoRA says the same
    torch.testing.assert_close(predicted(loaded(tmp_path / "run")), expected, rtol=0, atol=1e-5)


def test_every_weight_of_a_full_fine_tuning_is_taken(folder, tmp_path):
    tuned = finished(run_of(f"model.source={folder}", "model.rank=0"), tmp_path / "run")
    base = loaded(tmp_path / "run").network.state_dict()
    for name, weight in tuned.backbone.network.state_dict().items():
        assert torch.equal(base[name], weight), name


def test_a_run_of_a_run_begins_where_the_first_ended(folder, tmp_path):
    one = finished(run_of(f"model.source={folder}", "model.rank=2"), tmp_path / "one")
    second = run_of(f"model.source={tmp_path / 'one'}", "model.rank=3")
    two = finished(second, tmp_path / "two", seed=2)
    with two.reference():
        torch.testing.assert_close(
            predicted(two.backbone), predicted(one.backbone), rtol=0, atol=1e-5
        )
    expected = predicted(two.backbone)
    assert float((expected - predicted(one.backbone)).abs().max()) > 1e-2
    torch.testing.assert_close(predicted(loaded(tmp_path / "two")), expected, rtol=0, atol=1e-5)
    again = scoretune.load(tmp_path / "two")
    torch.testing.assert_close(predicted(again.backbone), expected, rtol=0, atol=1e-5)
    export.merge(two, second.model, tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    torch.testing.assert_close(predicted(merged), expected, rtol=0, atol=1e-5)


def test_a_network_of_ones_own_and_a_process(folder, tmp_path):
    settings = run_of(*own.SETTINGS, "model.rank=2")
    tuned = finished(settings, tmp_path / "own")
    base = loaded(tmp_path / "own")
    torch.testing.assert_close(predicted(base), predicted(tuned.backbone), rtol=0, atol=1e-5)
    moved = run_of(f"model.source={folder}", "model.rank=2", "model.process=VE(sigma_max=14)")
    tuned = finished(moved, tmp_path / "moved")
    base = loaded(tmp_path / "moved")
    assert isinstance(base, Recycled) and base.process == VE(sigma_max=14)
    torch.testing.assert_close(predicted(base), predicted(tuned.backbone), rtol=0, atol=1e-5)
    half = loaded(tmp_path / "moved", precision="bf16")
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}


def test_a_lora_goes_on_a_network_that_took_one_in(folder, tmp_path):
    finished(run_of(f"model.source={folder}", "model.rank=2"), tmp_path / "run")
    network = loaded(tmp_path / "run").network
    scoretune.load_lora(network, str(tmp_path / "run"))
    assert adapter_layers(network)


def test_it_weighs_what_its_beginning_weighs(folder, tmp_path):
    finished(run_of(f"model.source={folder}", "model.rank=2"), tmp_path / "run")
    planned = meta_device.meta_policy(run_of(f"model.source={tmp_path / 'run'}", "model.rank=3"))
    real = meta_device.meta_policy(run_of(f"model.source={folder}", "model.rank=3"))
    assert meta_device.weights_of(planned) == meta_device.weights_of(real)


def test_training_goes_on_from_a_run(small, tmp_path):
    """On a world of scenes, whose prompts, reader and judge a run of its model still has."""
    few = [*small, "updates=1", "model.rank=2", "guard.action=off"]
    tuned = finished(changed(recipes.named("ddpo"), few), tmp_path / "one")
    settings = changed(recipes.named("ddpo"), [*few, f"model.source={tmp_path / 'one'}"])

    class Silent:
        def note(self, text: str) -> None: ...
        def stage(self, text: str) -> None: ...

        def line(self, numbers: dict) -> None: ...

    run.ready(settings)
    run_folder.record(settings, tmp_path / "two", threads=1)
    result = run.launch(settings, tmp_path / "two", Silent())
    assert "judge" in json.dumps(result)
    again = scoretune.load(tmp_path / "two")
    with again.reference():
        torch.testing.assert_close(
            predicted(again.backbone), predicted(tuned.backbone), rtol=0, atol=1e-4
        )
    card = (tmp_path / "two" / "lora" / "README.md").read_text()
    assert f"scoretune export {tmp_path / 'one'} --merge --to BASE" in card


def test_a_run_without_weights_says_so_in_a_line(folder, tmp_path):
    run_folder.record(run_of(f"model.source={folder}"), tmp_path / "new", threads=1)
    data = changed(recipes.named("supervised"), ["model.source=mlp", "data=swiss-roll"])
    run_folder.record(data, tmp_path / "data", threads=1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{}")
    for name, text in (
        ("new", "has no weights yet: let it train"),
        ("data", "has no weights yet: let it train"),
        ("broken", "cannot be read: give a run of this version"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            loaded(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"start another run with model\.source="):
        run_folder.resumed(tmp_path / "new", ["seed=3"])


def test_a_stable_diffusion_whose_table_ends_without_signal(tmp_path):
    """As v-prediction models rescaled to a terminal signal-to-noise ratio of zero are saved."""
    folder = stable_diffusion.build(tmp_path / "model", prediction="v_prediction")
    path = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}
    path.write_text(json.dumps(settings))
    backbone = catalog.load_backbone(Model(source=str(folder)))
    table = backbone.process.alphas_cumprod
    assert table[-1] == 2**-32 < table[-2]  # a process needs some signal
    assert backbone.prediction.name == "v_prediction"
