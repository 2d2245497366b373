"""Settings files: what is written is read again as the same run, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scoretune import recipes
from scoretune.commands import settings_page
from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.training import settings_file
from scoretune.training.overrides import changed


@pytest.fixture
def file(tmp_path):
    """Writes a file of that name and gives its path."""

    def to(text: str, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return to


CHANGES = [
    ("ddpo", ["objective.baseline=running", "objective.buffer=8", "objective.min_count=4"]),
    ("ddpo", ["reward=reader + 0.5*brightness", "objective.combine=advantages", "seed=3"]),
    ("score_as_action", ["objective.form=explicit", "objective.exploration=0.1"]),
    ("score_as_action", ["sampling.solver=heun", "optimiser.learning_rate=1e-5"]),
    ("mix_grpo", ["guard.action=off", 'model.targets=["to_q"]', "model.source=a:b"]),
    ("supervised", ["model.source=unet", "data=digits", "optimiser.ema=0.5", "model.width=8"]),
    (
        "consistency",
        [
            "model.source=mlp",
            "data=moons",
            "updates=7",
            "dataset.columns=1,2",
            "dataset.kind=points",
        ],
    ),
]


@pytest.mark.parametrize(
    ("recipe", "changes"), [*((name, []) for name in recipes.RECIPES), *CHANGES]
)
def test_what_is_written_is_read_as_the_same_run(recipe, changes, file):
    run = changed(recipes.named(recipe), changes)
    text = settings_file.written(run)
    assert settings_file.named(file(text)) == run
    assert text.splitlines()[2] == f"recipe: {recipe}"
    assert max(map(len, text.splitlines())) <= 100


def test_what_is_never_read_is_not_written():
    text = settings_file.written(recipes.ddpo())
    assert "clip: 0.2" in text and "shared_scale: within" in text
    for name in ("buffer", "critic:", "eta_end", "shift", "etas", "dataset:", "ema"):
        assert f"  {name}" not in text and f"\n{name}" not in text


def test_a_file_holds_changes_to_its_recipe_and_the_command_line_goes_over_it(file):
    path = file(
        "recipe: ddpo\nupdates: 7\nsampling:\n  steps: 5  # few\n  # eta: 1\nsizes:\n"
        "optimiser: {learning_rate: 1e-4}\nguard:\n  action: off\nmodel:\n  without: a, b\n"
    )
    run = settings_file.named(path, ["sampling.steps=6", "seed=2"])
    plain = ["updates=7", "optimiser.learning_rate=1e-4", "guard.action=off", "model.without=a,b"]
    assert run == changed(recipes.ddpo(), [*plain, "sampling.steps=6", "seed=2"])
    same = {"recipe": "ddpo", "updates": 7, "guard": {"action": "off"}}
    path = file(json.dumps(same), "mine.json")
    assert settings_file.named(path) == changed(recipes.ddpo(), ["updates=7", "guard.action=off"])
    shown = json.dumps(recipes.dance_grpo().model_dump())
    assert settings_file.named(file(shown, "shown.json")) == recipes.dance_grpo()


def test_a_runs_own_settings_are_a_file(file):
    """Also where they hold what the run does not read, for it was not asked for now."""
    odd = recipes.ddpo().model_copy(
        update={"objective": config.PolicyGradient(buffer=7), "seed": 9}
    )
    path = file(json.dumps({"recipe": "ddpo", "config": odd.model_dump()}), "run.json")
    assert settings_file.named(path) == odd
    assert settings_file.named(path, ["updates=3"]).updates == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no settings: begin it with the line `recipe: ddpo`"),
        ("- ddpo\n", "holds no settings"),
        ("updates: 3\n", "names no recipe: begin it with the line `recipe: ddpo`"),
        ("recipe: ddop\n", "unknown recipe 'ddop': did you mean 'ddpo'?"),
        (
            "recipe: ddpo\nsampling:\n  stepz: 3\n",
            "'sampling.stepz': did you mean 'sampling.steps'",
        ),
        ("recipe: ddpo\nupdates:\n  more: 3\n", "unknown key 'updates.more': did you mean"),
        ("recipe: ddpo\nupdates: many\n", "updates: Input should be a valid integer"),
        ("recipe: ddpo\nsampling: 5\n", "sampling: Input should be a valid dictionary"),
        ("recipe: ddpo\nguard: {action: no}\n", "guard.action: Input should be 'off', 'warn'"),
        ("recipe: ddpo\nobjective: {buffer: 8}\n", "objective.buffer=8 is of no use here"),
        ("recipe: ddpo\n\tupdates: 3\n", "line 2: "),
        ("recipe: [ddpo\n", "cannot read the settings file"),
        ("recipe: ddpo\nupdates: 3\nupdates: 4\n", "line 3: 'updates' is there twice"),
        ("recipe: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(file, text, message):
    with pytest.raises(UserError) as caught:
        settings_file.named(file(text))
    assert message in str(caught.value)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(file, tmp_path):
    for path, message in (
        (str(tmp_path / "no.yml"), "No such file or directory"),
        (str(tmp_path / "no.json"), "No such file or directory"),
        (file("{", "a.json"), "cannot read the settings file"),
    ):
        with pytest.raises(UserError, match=message):
            settings_file.named(path)
    Path(tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="cannot read the settings file"):
        settings_file.named(str(tmp_path / "b.yaml"))


def test_the_shipped_models_are_those_of_the_world():
    assert set(config.SHIPPED_MODELS) == set(world.SHIPPED)


def test_the_page_of_settings_is_up_to_date():
    """Else: python -m scoretune.commands.settings_page > docs/settings.md"""
    docs = Path(__file__).parents[2] / "docs" / "settings.md"
    assert docs.read_text(encoding="utf-8") == settings_page.page()
