"""Bad input ends in one line that names the thing and the fix, never in a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scoretune.core import checkpoints, reading
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.evaluate import samples
from scoretune.training.engine import TorchEngine


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of one's own to run in, whose modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def told(command, here) -> Callable[..., str]:
    """Runs a command that must fail, and gives the one line it says."""

    def run(*arguments: object, code: int = 2) -> str:
        outcome = command(*arguments)
        assert outcome.code == code, outcome
        assert "Traceback" not in outcome.err + outcome.out
        lines = outcome.err.splitlines()
        complaints = [line for line in lines if line.startswith("scoretune: ")]
        assert len(complaints) == 1, outcome.err
        assert lines[-1] == complaints[0], "the complaint comes last"
        return complaints[0].removeprefix("scoretune: ")

    return run


@pytest.fixture
def train(told, small) -> Callable[..., str]:
    """`told` of a tiny `scoretune train ddpo` with some changes."""

    def run(*changes: str, code: int = 2) -> str:
        return told("train", "ddpo", *small, *changes, "--run", "runs/tried", code=code)

    return run


@pytest.fixture
def model(here) -> Path:
    """A copy of the shipped model to spoil."""
    return Path(shutil.copytree(world.shipped(), here / "model"))


# ---------------------------------------------------------------------------- models


def test_a_model_folder_that_is_missing(train, here):
    text = train(f"model.source={here}/nowhere")
    assert f"model folder '{here}/nowhere' does not exist: check the path" in text


def test_a_model_folder_that_cannot_be_read(train, model, monkeypatch):
    read = reading.read_bytes

    def refuse(path: Path, *rest, **named) -> bytes:
        if path.name == "model_index.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path, *rest, **named)

    monkeypatch.setattr(reading, "read_bytes", refuse)
    text = train(f"model.source={model}")
    assert f"{str(model)!r} is no diffusers pipeline (no readable model_index.json)" in text
    assert "pipe.save_pretrained(folder)" in text


def test_a_folder_that_is_no_pipeline(train, here):
    (here / "photos").mkdir()
    text = train(f"model.source={here}/photos")
    assert f"'{here}/photos' is no diffusers pipeline" in text


def test_an_index_that_is_no_json(train, model):
    (model / "model_index.json").write_text("{")
    assert "is no diffusers pipeline" in train(f"model.source={model}")


def test_a_pipeline_of_another_class(train, model):
    index = model / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "FluxPipeline"}))
    text = train(f"model.source={model}")
    assert "says that it holds a FluxPipeline, but its network, a UNet2DConditionModel, is" in text
    assert "is that of a StableDiffusionPipeline or a StableDiffusionXLPipeline or" in text


def test_pickled_weights(train, model):
    unet = model / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    text = train(f"model.source={model}")
    assert "diffusion_pytorch_model.bin' is a pickle, which can run code when read" in text
    folder = str(model)
    lines = (f"p = {folder!r}", "DiffusionPipeline.from_pretrained(p).save_pretrained(p)")
    assert text.endswith("if you trust it, convert it once: " + "; ".join(lines))


def test_the_lines_that_convert_pickled_weights_do_so(model):
    from diffusers import DiffusionPipeline

    from scoretune.models import folders

    def load():
        kind = folders.described(str(model))["_class_name"]
        return folders.load_pipeline(kind, str(model), revision=None, dtype=torch.float32)

    before = load().unet.state_dict()
    safe = load()
    for name in ("unet", "vae"):  # the text encoder stays as it is
        (model / name / "diffusion_pytorch_model.safetensors").unlink()
        getattr(safe, name).save_pretrained(model / name, safe_serialization=False)
    with pytest.raises(UserError) as caught:
        load()
    exec(str(caught.value).partition("once: ")[2], {"DiffusionPipeline": DiffusionPipeline})
    after = load().unet.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_weights_cut_short(train, model):
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    text = train(f"model.source={model}")
    assert f"cannot load the model {str(model)!r}" in text
    assert "safetensors weights" in text


def test_weights_that_are_missing(train, model):
    shutil.rmtree(model / "vae")
    assert f"cannot load the model {str(model)!r}" in train(f"model.source={model}")


# ---------------------------------------------------------------------------- settings


def test_an_unknown_recipe(told):
    assert told("train", "ddop") == "unknown recipe 'ddop': did you mean 'ddpo'?"
    assert "did you mean 'score_as_action'" in told("show", "score_action")
    assert "choose one of: adjoint_matching, " in told("show", "xyz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sampling.stepz=3", "unknown key 'sampling.stepz': did you mean 'sampling.steps'?"),
        ("optimizer.learning_rate=1", "did you mean 'optimiser.learning_rate'?"),
        ("updates.more=3", "unknown key 'updates.more': did you mean 'updates'?"),
        ("sampling.steps", "cannot read 'sampling.steps': changes look like sampling.steps=20"),
        ("updates=many", "updates: Input should be a valid integer"),
        ("updates=0", "updates: Input should be greater than or equal to 1, got 0"),
        ("updates=2.5", "updates: Input should be a valid integer"),
        ("sampling.steps=1", "sampling.steps: Input should be greater than or equal to 2, got 1"),
        ("sampling.eta=-1", "sampling.eta: Input should be greater than or equal to 0, got -1"),
        ("sampling.kernel=ddpm", "sampling.kernel: Input should be 'gddim', 'renoise', "),
        ("sizes.share=1.5", "sizes.share: Input should be less than or equal to 1, got 1.5"),
        ("optimiser.learning_rate=NaN", "optimiser.learning_rate: Input should be a finite"),
        ("optimiser.learning_rate=Infinity", "optimiser.learning_rate: Input should be a finite"),
        ("seed=-1", "seed: Input should be greater than or equal to 0, got -1"),
        ("objective.form=slope", "unknown key 'objective.form'"),
        ("objective.critic.depth=48", "unknown key 'objective.critic.depth'"),
        ("objective.critic.width=6", "objective.critic.width: Input should be a multiple of 4"),
        ("objective.critic.skip=sin", "objective.critic.skip: Input should be 'cos_sin', 'linear'"),
        (
            "objective.trust_region=0",
            "objective.trust_region: Input should be greater than or equal to",
        ),
        ("sampling.solver=rk4", "sampling.solver: Input should be 'ddim', 'euler', "),
        ("sizes.accumulate=-1", "sizes.accumulate: Input should be greater than or equal to 0"),
        ("model.targets=to_q", "model.targets: Input should be a valid tuple, got 'to_q'"),
        ("evaluation.solver=rk4", "evaluation.solver: Input should be 'ddim', 'euler', "),
    ],
)
def test_a_setting_that_does_not_fit(told, change, said):
    for verb in ("show", "train"):
        assert said in told(verb, "ddpo", change)
    assert not Path("runs").exists()


def test_a_setting_that_nothing_reads(told):
    text = told("train", "draft", "sizes.share=0.5", "--run", "runs/tried")
    assert text.startswith("sizes.share=0.5 is of no use here: it is for recipes that learn from")
    assert not Path("runs").exists()


def test_a_file_of_settings_that_cannot_be_read(told, here):
    assert "cannot read the settings file 'mine.yaml' (No such file" in told("train", "mine.yaml")
    (here / "mine.yaml").write_text("recipe: ddpo\nupdates 3\nseed: 1\n")
    assert "cannot read the settings file 'mine.yaml' (line " in told("show", "mine.yaml")
    (here / "mine.yaml").write_text("recipe: ddpo\nupdaets: 3\n")
    text = told("train", "mine.yaml")
    assert text == "mine.yaml: unknown key 'updaets': did you mean 'updates'?"


def test_noise_that_a_step_cannot_hold(train):
    text = train("sampling.kernel=renoise", "sampling.eta=3")
    assert "sampling.eta=3 does not suit the grid" in text
    assert "lower eta" in text


def test_targets_without_a_layer(train):
    text = train('model.targets=["nowhere"]')
    assert "no layer named nowhere to adapt in UNet2DConditionModel" in text


def test_a_kl_without_a_reference(train):
    text = train("model.rank=0", "objective.kl_weight=0.1")
    assert "set model.rank above 0, or every KL weight to 0" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "ddpo", "--theads", 2), "--theads"),
        (("train", "ddpo", "--threads", 0), "--threads"),
        (("train", "ddpo", "--threads", 1000000), "less than or equal to 1024"),
        (("train", "ddpo", "--run", ""), "the name of a folder is empty"),
        (("train", "--resume", ""), "the name of a folder is empty"),
        (("train", "--resume", "a", "--run", "b"), "--resume goes on in its own folder: leave"),
        (("train", "ddpo", "--accept-changes"), "--accept-changes is of --resume"),
        (("train", "ddpo", "recipe=draft"), "name the recipe first, as in scoretune train draft"),
        (("demo", "--seed", -1), "--seed"),
        (("demo", "--seed", "one"), "--seed"),
        (("tarin",), "tarin"),
        (("show",), "RECIPE"),
    ],
)
def test_a_wrong_command_line(told, arguments, said):
    assert said.lower() in told(*arguments).lower()


def test_no_recipe(told):
    text = told("train")
    assert "name a recipe (" in text
    assert "--resume a run folder" in text


# ---------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("key", ["prompts", "evaluation.prompts"])
def test_a_prompt_file_that_is_missing(told, key, small):
    changes = [change for change in small if "per_task" not in change]
    text = told("train", "ddpo", *changes, f"{key}=nowhere.txt")
    assert "cannot read the prompt file 'nowhere.txt' (No such file or directory)" in text
    assert "one prompt a line" in text


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "is empty: write one prompt a line"),
        (b" \n\n", "is empty: write one prompt a line"),
        (b"\xff\xfe\x00\xd8", "it is text in UTF-16: save it as UTF-8"),
    ],
)
def test_a_prompt_file_without_prompts(train, here, payload, said):
    (here / "prompts.txt").write_bytes(payload)
    assert said in train("prompts=prompts.txt")


def test_prompts_that_the_reader_cannot_judge(train, here):
    (here / "prompts.txt").write_text("a photo of a cat\n")
    text = train("prompts=prompts.txt", "reward=reader")
    assert "unknown scene prompt" in text
    assert "a photo of a cat" in text


# ---------------------------------------------------------------------------- rewards


def test_an_unknown_reward(train):
    assert "unknown reward 'raeder': did you mean 'reader'?" in train("reward=raeder")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return images.mean((1, 2, 3)) / 0 * 0", "is nan for the prompt 'a"),
        ("return images.mean()", "returned shape () for 1 images: return one number an image"),
        (
            "raise IndexError('first\\nsecond')",
            "failed with IndexError: first second at reward_that_raises.py:2;",
        ),
        ("return None", "failed with"),
    ],
    ids=["nan", "shape", "raises", "none"],
)
def test_a_reward_that_misbehaves(train, here, body, said, request):
    name = f"reward_that_{request.node.callspec.id}"
    (here / f"{name}.py").write_text(f"def of(images, prompts):\n    {body}\n")
    text = train(f"reward={name}:of")
    assert f"reward '{name}:of'" in text
    assert said in text


def test_a_reward_that_cannot_be_imported(train):
    text = train("reward=no_such_module:of")
    assert "cannot import the reward 'no_such_module:of'" in text
    assert "module:function" in text


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ("reader + 0.5 compressibility", "cannot read the reward 'reader + 0.5 compressibility'"),
        ("reader + 0.5*raeder", "unknown reward 'raeder': did you mean 'reader'?"),
        ("reader - 0*brightness", "reward 'brightness' has the weight 0: leave it out, or change"),
        ("reader + 2*reader", "reward 'reader' is there twice: give it one weight"),
    ],
)
def test_a_sum_of_rewards_that_cannot_be_read(train, reward, said):
    assert said in train(f"reward={reward}")


def test_the_part_of_a_sum_that_misbehaves_is_named(train, here):
    (here / "half_broken.py").write_text("def of(images, prompts):\n    return images.mean()\n")
    text = train("reward=reader + 0.5*half_broken:of")
    assert "reward 'half_broken:of' returned shape () for" in text


def test_slopes_of_a_sum_with_a_part_without_gradient(told, small):
    text = told("train", "draft", *small, "reward=reader + 0.1*compressibility", "--run", "tried")
    assert "reward 'reader + 0.1*compressibility' has no gradient, and recipe 'draft'" in text


def test_a_critic_of_rewards_compared_one_by_one(told, small):
    changes = ["reward=reader + brightness", "objective.combine=advantages"]
    text = told("train", "dpok", *small, *changes, "--run", "tried")
    assert "objective.combine=advantages compares every reward by itself" in text
    assert "objective.baseline=group or running" in text


def test_a_memory_that_is_never_used(train):
    text = train("objective.baseline=running", "objective.buffer=8", "objective.min_count=9")
    assert "set objective.min_count to at most objective.buffer" in text


def test_slopes_of_a_reward_without_gradient(told, small):
    text = told(
        *("train", "score_as_action", *small, "--run", "runs/tried"),
        *("reward=compressibility", "objective.form=slope"),
    )
    assert "reward 'compressibility' has no gradient" in text
    assert "score_as_action with objective.form=ratio" in text


# ---------------------------------------------------------------------------- the disk


def full_disk(monkeypatch, allowed: int) -> None:
    """No byte reaches the disk after `allowed` flushes."""
    flush, seen = os.fsync, []

    def refuse(handle: int) -> None:
        seen.append(handle)
        if len(seen) > allowed:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_disk_that_is_full_while_saving(train, command, monkeypatch):
    with monkeypatch.context() as patch:
        full_disk(patch, allowed=3)  # one checkpoint
        text = train()
    assert "cannot write a checkpoint to runs/tried/checkpoints: No space left on device" in text
    assert "free some space" in text
    newest = checkpoints.latest(Path("runs/tried/checkpoints"))
    assert newest.name == "step-00000001"
    assert checkpoints.load(newest)["update"] == 1
    assert command("train", "--resume", "runs/tried").code == 0  # with space, it goes on


def test_a_disk_that_is_full_while_logging(train, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("scoretune.core.files.append_line", refuse)
    text = train()
    assert "No space left on device" in text
    assert "metrics.jsonl" in text


def test_a_run_folder_that_cannot_be_made(told, here):
    (here / "file").write_text("in the way")
    text = told("train", "ddpo", "--run", "file/below")
    assert "cannot write to 'file/below'" in text
    assert "choose --run" in text


def test_pictures_that_cannot_be_written(told, here):
    text = told("sample", world.shipped(), "a seven", "--out", "nowhere/a.png", "--steps", 1)
    assert "cannot write 'nowhere/a.png'" in text


@pytest.mark.parametrize("name", ["a.unknown", "a", "a.npz", "a.psd"])
def test_an_ending_that_cannot_be_written_is_refused_before_anything_is_drawn(
    told, monkeypatch, name
):
    monkeypatch.setattr(samples, "sample", lambda *args, **kwargs: pytest.fail("it was drawn"))
    text = told("sample", world.shipped(), "a seven", "--out", name, "--steps", 1)
    assert f"cannot write '{name}'" in text


# ---------------------------------------------------------------------------- going on


@pytest.fixture(scope="module")
def small_run(small, tmp_path_factory) -> Path:
    """A finished run of the small model, to be read only."""
    from scoretune import recipes
    from scoretune.training import overrides, run_folder
    from scoretune.training.hooks import Silent
    from scoretune.training.run import launch

    run, folder = overrides.changed(recipes.ddpo(), small), tmp_path_factory.mktemp("small") / "run"
    run_folder.record(run, folder, 1)
    launch(run, folder, Silent())
    return folder


@pytest.fixture
def finished(here, small_run) -> Path:
    return Path(shutil.copytree(small_run, here / "runs" / "finished"))


def test_an_export_keeps_to_one_form_a_folder(told, command, finished, here):
    words = ("export", finished, "--to", "out", "--format")
    for _ in range(2):  # once more into its own
        assert command(*words, "peft").code == 0
    text = told(*words, "kohya")
    assert text.startswith("'out' holds the form peft already (adapter_model.safetensors): ")
    assert not (here / "out" / "lora_kohya.safetensors").exists()


def test_a_checkpoint_cut_short(told, command, finished):
    newest = checkpoints.latest(finished / "checkpoints")
    weights = newest / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    text = told("train", "--resume", finished)
    assert f"checkpoint {newest} is damaged" in text
    assert "delete that folder to go on from the one before it" in text
    assert f"checkpoint {newest} is damaged" in told("sample", finished, "a seven")
    shutil.rmtree(newest)
    assert command("train", "--resume", finished).code == 0


@pytest.mark.parametrize("verb", [("train", "--resume"), ("evaluate",)])
def test_a_folder_that_is_no_run(told, here, verb):
    for folder in ("nowhere", "."):
        text = told(*verb, folder)
        assert f"{folder!r} is no run folder (no readable run.json)" in text
    (here / "run.json").write_text('{"config": {"recipe": "ddpo", "colour": "blue"}}')
    told(*verb, ".")


def test_a_folder_of_another_run(told, finished, small):
    text = told("train", "ddpo", *small, "seed=3", "--run", finished)
    assert "holds a run with other settings: choose another --run folder" in text
    assert f"scoretune train --resume {finished}" in text


def test_a_run_without_a_checkpoint(told, finished):
    shutil.rmtree(finished / "checkpoints")
    text = told("sample", finished, "a seven")
    assert "has no checkpoint yet: let it train a little longer" in text


def test_ctrl_c(train, command, here):
    (here / "interrupting.py").write_text(
        "from pathlib import Path\n"
        "raised = []\n"
        "def of(images, prompts):\n"
        "    if not raised and any(Path('runs/tried/checkpoints').glob('step-*')):\n"
        "        raised.append(True)\n"
        "        raise KeyboardInterrupt\n"
        "    return images.mean((1, 2, 3))\n"
    )
    text = train("reward=interrupting:of", code=130)
    assert text == "stopped; go on with: scoretune train --resume runs/tried"
    newest = checkpoints.latest(Path("runs/tried/checkpoints"))
    assert checkpoints.load(newest)["update"] == 1
    assert command("train", "--resume", "runs/tried").code == 0
    assert checkpoints.latest(Path("runs/tried/checkpoints")).name == "step-00000002"


def test_a_start_that_is_refused_leaves_nothing_and_one_that_was_cut_off_is_no_run(train, here):
    text = train('model.targets=["nowhere"]')  # seen once the model is there
    assert "no layer named nowhere" in text
    assert not (here / "runs").exists()
    (here / "runs" / "tried").mkdir(parents=True)
    (here / "runs" / "tried" / "run.json").write_text("")
    text = train('model.targets=["nowhere"]')
    assert "no layer named nowhere" in text
    (here / "runs" / "tried" / "checkpoints" / "step-00000003").mkdir(parents=True)
    text = train()
    assert "run.json' is damaged" in text and "step-00000003 needs its settings" in text


# ------------------------------------------------------------------- memory, and other machines


def test_out_of_memory_says_which_knob_to_turn_and_loses_nothing(told, command, small, here):
    """An update of a run runs out of memory; with smaller parts it goes on to the end. Which knob
    it is, tests of plans know: here it is one that they would name."""

    step, updates = TorchEngine.step, []

    def short(machine: TorchEngine, *rest: object, **named: object) -> float:
        updates.append(machine.at_once)
        if len(updates) == 2 and not machine.at_once:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tr")
        return step(machine, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchEngine, "step", short)
        advised: list[str] = []
        patch.setattr(
            "scoretune.commands.plan.suggestions.best_suggestion",
            lambda run: advised.append(run.recipe) or "set hardware.device_batch=2: of much",
        )
        changes = [*small, "sizes.accumulate=0", "updates=3"]
        text = told("train", "ddpo", *changes, "--run", "runs/tried")
        assert text.startswith("there is not enough memory ([enforce fail] DefaultCPUAllocator: ca")
        assert "): set hardware.device_batch=2: of much; nothing is lost" in text
        assert advised == ["ddpo"]
        assert "scoretune train --resume runs/tried and that setting" in text
        done = command("train", "--resume", "runs/tried", "hardware.device_batch=2")
        assert done.code == 0, done.err
    recorded = json.loads((here / "runs" / "tried" / "run.json").read_text())
    assert recorded["config"]["hardware"]["device_batch"] == 2
    lines = (here / "runs" / "tried" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in lines] == [1, 2, 3]
    assert updates == [0, 0, 2, 2]


def test_a_resumed_run_keeps_the_settings_that_decide_its_result(told, finished):
    text = told("train", "--resume", finished, "sampling.steps=9")
    assert text.startswith("--resume repeats the run's own settings, all but hardware, tracking")
    assert "leave out 'sampling.steps=9', or add --accept-changes (to train further, start" in text
    assert "leave out 'grpo'" in told("train", "--resume", finished, "grpo")
    near = told("train", "--resume", finished, "hardware.device_batches=2")
    assert "did you mean 'hardware.device_batch'?" in near


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["optimiser.kind=8bit"], "optimiser.kind=8bit is bitsandbytes': pip install"),
        (
            ["hardware.offload_paths=true", "objective.baseline=critic"],
            "hardware.offload_paths is for likelihood ratios credited by outcome",
        ),
        (["tracking.trackers=tensorbord"], "did you mean 'tensorboard'?"),
        (["model.precision=fp8"], "model.precision: Input should be 'fp32', 'bf16', 'fp16'"),
        (["model.shape=[3,8,8]"], "model.shape is of a network of your own, module:function"),
        (["model.size=30"], "model.size=30 is no multiple of"),
    ],
)
def test_settings_of_the_machine(train, changes, said):
    assert said in train(*changes)


def test_more_processes_than_prompts_can_be_shared_by(told, small, here, monkeypatch):
    from scoretune.core import distributed

    monkeypatch.setattr(distributed, "team", lambda: distributed.Team(0, 2))
    monkeypatch.setattr(distributed, "start", lambda asked: distributed.team())
    monkeypatch.setattr(distributed, "agreed", lambda text: text)
    text = told("train", "ddpo", *small, "sizes.prompts=3", "--run", "runs/tried")
    assert text.startswith("sizes.prompts=3 cannot be shared equally by 2 processes")
    assert text.endswith("set a multiple of 2")


def test_a_model_of_ones_own_needs_prompts_and_a_reward(told, here, model, small):
    (model / "judge.safetensors").unlink()  # what tells the shipped world's models
    given = [*small, "reward=reader", f"model.source={model}", "--run", "runs/tried"]
    text = told("train", "ddpo", *given)
    assert text.startswith("prompts=scenes, the default, are of the shipped digits, which")
    assert "set prompts=FILE (one a line), or prompts=none, and a reward" in text
    (here / "prompts.txt").write_text("a red cat\n")
    text = told("train", "ddpo", *given, "prompts=prompts.txt")
    assert text.startswith("reward=reader, the default, judges the shipped digits, which")
    assert not (here / "runs").exists()
