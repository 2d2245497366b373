"""Networks told a class or nothing: DiT, and UNet2DModel on pixels, against diffusers' own call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from scoretune import recipes
from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM, Renoise, Still
from scoretune.diffusion.processes import Tabulated
from scoretune.models import dit as dit_family
from scoretune.models import export, unconditional
from scoretune.models.class_labels import Labels
from scoretune.models.dit import DiffusionTransformer
from scoretune.models.lora import adapter_state, add_adapter, load_lora
from scoretune.models.schedulers import noise_table
from scoretune.models.tiny import diffusion_transformer as dit_miniature
from scoretune.models.tiny import unconditional as unet_miniature
from scoretune.models.unconditional import ConvolutionalPixelUNet, PixelUNet
from scoretune.policy import Policy
from scoretune.training import build, overrides, run_folder

CPU = torch.device("cpu")
CLASSES = ["goldfish", "207", "Tinca tinca", "999"]
NUMBERS = [1, 207, 0, 999]
STEPS = 5


# ----------------------------------------------------------------------------- tiny pipelines


@pytest.fixture(scope="module")
def dit(tmp_path_factory) -> Path:
    return dit_miniature.build(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def unet(tmp_path_factory) -> Path:
    return unet_miniature.build(tmp_path_factory.mktemp("unet"))


@pytest.fixture(scope="module")
def transformer(dit) -> DiffusionTransformer:
    return dit_family.load(str(dit))


@pytest.fixture(scope="module")
def pixels(unet) -> PixelUNet:
    return unconditional.load(str(unet))


def saved(folder: Path, network: Any, scheduler: Any = None, kind: Any = DDIMPipeline) -> Path:
    """A folder of a UNet2DModel in a pipeline of that kind."""
    kind(network, scheduler or DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


def plain(folder: Path, kind: Any) -> Any:
    """The folder as diffusers loads it."""
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def ours(found: Any, prompts: list[str], guidance: float = 1.0) -> torch.Tensor:
    """Finished states on diffusers' own times, from the noise that a pipeline draws by itself."""
    times = grids.diffusers_times(found.process, STEPS, steps_offset=0, set_alpha_to_one=True)
    field = Policy(found, Renoise(Still()), guidance).field(found.encode(prompts))
    return solvers.ddim(found.process, field, noise(len(prompts), *found.shape), times)


# -------------------------------------------------------------------------------- DiT: parity


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ddim_of_a_dit_is_the_pipeline(dit, transformer, guidance):
    pipe, seen = plain(dit, DiTPipeline), []
    pipe.vae.post_quant_conv.register_forward_pre_hook(
        lambda module, given: seen.append(given[0] * pipe.vae.config.scaling_factor)
    )
    pictures = pipe(
        pipe.get_label_ids(["goldfish", "golden retriever", "Tinca tinca"]) + [999],
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(2),
        output_type="pt",
    ).images
    mine = ours(transformer, CLASSES, guidance)
    assert float(mine.std()) > 0.5
    torch.testing.assert_close(mine, seen[0], rtol=0, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(transformer.decode(mine), pictures, rtol=0, atol=1e-4)
    other = ours(transformer, CLASSES, guidance + 1)
    assert float((other - mine).abs().max()) > 1e-2


def test_the_variance_is_left_out(transformer):
    seen: list[torch.Tensor] = []
    hook = transformer.network.register_forward_hook(
        lambda module, given, found: seen.append(found.sample)
    )
    with torch.no_grad():
        output = transformer.predict(
            noise(4, 4, 4, 4), torch.full((4,), 0.5), transformer.encode(CLASSES).tokens
        )
    hook.remove()
    assert seen[0].shape == (4, 8, 4, 4)
    assert torch.equal(output, seen[0][:, :4])


def test_a_dit_as_it_was_published_first(dit, tmp_path):
    """Its index and configuration name diffusers' older class of transformers."""
    where = Path(shutil.copytree(dit, tmp_path / "copy"))
    rewrite(where / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    rewrite(where / "transformer" / "config.json", _class_name="Transformer2DModel")
    found = dit_family.load(str(where))
    assert type(found.network).__name__ == "DiTTransformer2DModel"
    torch.testing.assert_close(ours(found, CLASSES), ours(dit_family.load(str(dit)), CLASSES))


# -------------------------------------------------------------------------------- DiT: classes


def test_classes_are_one_hot_and_the_empty_prompt_is_one_more(transformer):
    condition = transformer.encode(CLASSES)
    assert condition.tokens.shape == (4, 1, 1001)
    assert condition.tokens.sum(-1).tolist() == [[1.0]] * 4
    assert condition.tokens[:, 0].argmax(1).tolist() == NUMBERS
    assert condition.null.nonzero().tolist() == [[0, 1000]]
    assert torch.equal(transformer.encode([""]).tokens[0], condition.null)
    assert transformer.encode([" 207 "]).tokens[0, 0].argmax() == 207


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gold fish", "unknown class 'gold fish': did you mean 'goldfish'?"),
        ("golden retrievr", "unknown class 'golden retrievr': did you mean 'golden retriever'?"),
        (
            "1000",
            "class '1000': give a number from 0 to 999, or a name such as 'Carassius auratus'",
        ),
        ("-1", "class '-1': give a number from 0 to 999"),
        ("1.5", "class '1.5': give a number from 0 to 999"),
    ],
)
def test_a_wrong_class_says_which_is_near(transformer, asked, said):
    with pytest.raises(UserError) as caught:
        transformer.encode([asked])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_names_that_diffusers_forgot(dit, tmp_path):
    """Its own save_pretrained drops the names; numbers remain."""
    plain(dit, DiTPipeline).save_pretrained(tmp_path)
    found = dit_family.load(str(tmp_path))
    assert found.labels == Labels(1000)
    assert found.encode(["207"]).tokens[0, 0].argmax() == 207
    with pytest.raises(UserError, match=r"unknown class 'goldfish': give a number from 0 to 999$"):
        found.encode(["goldfish"])


def test_a_dit_of_another_size(dit):
    found = dit_family.load(str(dit), size=64)
    assert found.shape == (4, 8, 8)
    with torch.no_grad():
        t, tokens = torch.full((1,), 0.5), found.encode(["1"]).tokens
        assert found.predict(noise(1, 4, 8, 8), t, tokens).shape == (1, 4, 8, 8)
    with pytest.raises(UserError, match=r"model\.size=40 is no multiple of 16"):
        dit_family.load(str(dit), size=40)


# ------------------------------------------------------------------------------ UNet2D: parity


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_of_pixels_is_the_pipeline(tmp_path, prediction):
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction)
    saved(tmp_path, unet_miniature.unet(), scheduler)
    found, pipe = unconditional.load(str(tmp_path)), plain(tmp_path, DDIMPipeline)
    assert found.prediction.name == prediction
    pictures = pipe(
        batch_size=3,
        eta=0.0,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(2),
        output_type="pt",
    ).images
    mine = ours(found, [""] * 3)
    torch.testing.assert_close(found.decode(mine), pictures, rtol=0, atol=1e-4)
    assert float(pictures.std()) > 0.05 and bool((mine.abs() < 1).any())


def test_a_ddpm_pipeline_has_the_same_table(tmp_path):
    saved(tmp_path, unet_miniature.unet(), DDPMScheduler(clip_sample=False), DDPMPipeline)
    found, pipe = unconditional.load(str(tmp_path)), plain(tmp_path, DDPMPipeline)
    assert found.process == Tabulated.linear()
    x, index = noise(2, 3, 8, 8), 400
    with torch.no_grad():
        t = torch.full((2,), (index + 1) / 1000)
        estimate = Policy(found, GDDIM(1.0)).estimate(x, t, found.encode(["", ""]))
        raw = pipe.unet(x, index).sample
    data = pipe.scheduler.step(raw, index, x).pred_original_sample
    torch.testing.assert_close(estimate.data, data, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def walked(network: Any, labels: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """DDIM with diffusers' own parts, for networks whose pipeline cannot be told a class."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    x = noise(len(labels), *shape)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t, class_labels=labels).sample, t, x).prev_sample
    return x


@pytest.mark.parametrize(
    ("classes", "kind", "width"),
    [(7, None, 7), (7, "timestep", 7), (None, "timestep", 1000), (None, "identity", 32)],
)
def test_classes_of_a_unet(tmp_path, classes, kind, width):
    """A table of classes, numbers on a sinusoid, unit vectors: told as diffusers is told them."""
    network = unet_miniature.unet(classes=classes, class_kind=kind)
    found = unconditional.load(str(saved(tmp_path, network)))
    condition = found.encode(["6", "0", "3"])
    assert condition.tokens.shape == (3, 1, width)
    assert condition.tokens[:, 0].argmax(1).tolist() == [6, 0, 3]
    labels = torch.tensor([6, 0, 3])
    told = torch.eye(width)[labels] if kind == "identity" else labels
    mine = ours(found, ["6", "0", "3"])
    torch.testing.assert_close(mine, walked(network, told, (3, 8, 8)), rtol=0, atol=1e-4)
    assert float((ours(found, ["5", "1", "2"]) - mine).abs().amax((1, 2, 3)).min()) > 1e-3
    with pytest.raises(
        UserError, match=f"unknown class 'cat': give a number from 0 to {width - 1}"
    ):
        found.encode(["cat"])


def test_a_class_is_needed_where_there_are_classes(tmp_path):
    where = saved(tmp_path, unet_miniature.unet(classes=7))
    found = unconditional.load(str(where))
    empty = found.encode([""])  # its width is asked for
    assert not empty.tokens.any() and empty.tokens.shape == (1, 1, 7)
    with pytest.raises(UserError, match="draws a class: set prompts to a file of class numbers"):
        found.predict(noise(1, 3, 8, 8), torch.full((1,), 0.5), empty.tokens)


@pytest.mark.parametrize("classes", [None, 7])
def test_there_is_nothing_to_guide_away_from(tmp_path, classes):
    found = unconditional.load(str(saved(tmp_path, unet_miniature.unet(classes=classes))))
    condition = found.encode(["3"])
    with pytest.raises(UserError, match="guidance needs an empty prompt"):
        Policy(found, GDDIM(1.0), 2.0).estimate(noise(1, 3, 8, 8), torch.ones(1), condition)


# ----------------------------------------------------------------------------- UNet2D: pixels


def test_what_a_pixel_unet_is(pixels):
    assert pixels.shape == (3, 8, 8)
    assert pixels.process == Tabulated.linear()
    assert pixels.encode(["a red seven", ""]).tokens.shape == (2, 0, 0)  # the reward's, not its
    assert not any(p.requires_grad for p in pixels.network.parameters())


def test_pictures_and_back(tmp_path, pixels):
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0]).view(1, 1, 1, 5).expand(2, 3, 1, 5)
    assert pixels.decode(x)[0, 0, 0].tolist() == [0, 0, 0.5, 0.75, 1]
    assert pixels.embed(torch.full((1, 3, 8, 8), 0.75)).unique().tolist() == [0.5]
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(pixels.decode(pixels.embed(images)), images)
    found = unconditional.load(str(saved(tmp_path, unet_miniature.unet(channels=1))))
    assert found.shape == (1, 8, 8)
    drawn = found.decode(noise(2, 1, 8, 8))
    assert drawn.shape == (2, 3, 8, 8)
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    colour = torch.tensor([0.3, 0.6, 0.9]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(found.embed(colour), torch.full((1, 1, 8, 8), 0.2))


def test_sizes_of_pictures(unet, tmp_path):
    assert unconditional.load(str(unet), size=12).shape == (3, 12, 12)
    network = unet_miniature.unet()
    network.register_to_config(sample_size=(8, 12))
    found = unconditional.load(str(saved(tmp_path, network)))
    assert found.shape == (3, 8, 12)
    with torch.no_grad():
        t = torch.full((2,), 0.5)
        output = found.predict(noise(2, 3, 8, 12), t, found.encode(["", ""]).tokens)
    assert output.shape == (2, 3, 8, 12)


def test_features_of_a_unet_without_a_middle(tmp_path):
    network = unet_miniature.unet()
    network.mid_block = None
    network.register_to_config(mid_block_type=None)
    found = unconditional.load(str(saved(tmp_path, network)))
    t, tokens = torch.full((2,), 0.5), found.encode(["", ""]).tokens
    _, features = found.predict_with_features(noise(2, 3, 8, 8), t, tokens)
    assert features.shape == (2, found.feature_size)


# --------------------------------------------------------------------------------- both of them


# ------------------------------------------------------------------------------- fine-tuning


def carried(found: Any, fresh: Any, prompts: list[str], folder: Path) -> None:
    """An adapter that does something, written and read: the same pictures elsewhere."""
    bare = ours(found, prompts)
    add_adapter(found.network, 2, found.targets)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in adapter_state(found.network).items():
        if "lora_B" in name:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    path = export.lora(Policy(found, GDDIM(1.0)), folder)
    assert f"{found.part}.".encode() in path.read_bytes()
    load_lora(fresh.network, folder)
    mine = ours(found, prompts)
    torch.testing.assert_close(ours(fresh, prompts), mine, rtol=1e-4, atol=1e-4)
    assert float((mine - bare).abs().max()) > 0.01


def test_convolutions_are_adapted_where_there_is_no_attention(tmp_path, tiny, launched):
    where = saved(tmp_path / "model", unet_miniature.unet(attention=False))
    found = unconditional.load(str(where))
    assert isinstance(found, ConvolutionalPixelUNet)
    carried(found, unconditional.load(str(where)), [""] * 2, tmp_path / "lora")
    given = [f"model.source={where}", "prompts=none", "reward=brightness", "model.rank=2"]
    run = overrides.changed(recipes.named("ddpo"), [*tiny, *given])
    assert [line["update"] for line in launched(run, tmp_path / "run")] == [1, 2]
    learned = adapter_state(run_folder.load(tmp_path / "run").backbone.network)
    assert {name.split(".lora")[0].rpartition(".")[2] for name in learned} == {"conv1", "conv2"}
    assert all(bool(w.any()) for name, w in learned.items() if "lora_B" in name)


def test_a_unet_of_classes_trains(tmp_path, tiny, launched):
    where = saved(tmp_path / "model", unet_miniature.unet(classes=3, channels=1))
    (tmp_path / "classes.txt").write_text("0\n1\n2\n")
    given = [f"model.source={where}", "reward=brightness", "model.rank=2"]
    given += [f"prompts={tmp_path / 'classes.txt'}"]
    dpok = overrides.changed(recipes.named("dpok"), [*tiny, *given])  # its critic reads the class
    assert [line["update"] for line in launched(dpok, tmp_path / "run")] == [1, 2]


# ---------------------------------------------------------------------------------- bad input


def built(source: Path) -> Policy:
    model = config.Model(source=str(source), rank=0)
    run = config.Run(recipe="none", objective=config.PolicyGradient(), model=model)
    return build.build_policy(run, CPU)


def test_a_run_with_a_wrong_class_is_refused(tiny, dit, tmp_path, launched):
    (tmp_path / "classes.txt").write_text("goldfish\ngolden retreiver\n")
    given = [f"model.source={dit}", "reward=brightness", f"prompts={tmp_path / 'classes.txt'}"]
    run = overrides.changed(recipes.named("ddpo"), [*tiny, *given])
    with pytest.raises(UserError, match=r"'golden retreiver': did you mean 'golden retriever'\?"):
        launched(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time_embedding_type": "learned"}, "has a learned embedding of time"),
        ({"sample_size": None}, r"does not say how large its pictures are: set model\.size"),
        ({"sample_size": (8, 9)}, "is no multiple of 2"),
    ],
)
def test_networks_that_are_refused(tmp_path, changes, said):
    network = unet_miniature.unet()
    if "time_embedding_type" in changes:
        network.time_proj = torch.nn.Embedding(1000, 8)
        changes = {**changes, "num_train_timesteps": 1000}
    network.register_to_config(**changes)
    with pytest.raises(UserError, match=said) as caught:
        unconditional.load(str(saved(tmp_path, network)))
    assert "\n" not in str(caught.value)


def test_states_that_are_no_pixels_are_refused(tmp_path):
    saved(tmp_path, unet_miniature.unet(channels=4))
    with pytest.raises(UserError, match="draws states of 4 channels, which are no pixels"):
        unconditional.load(str(tmp_path))


def test_a_table_that_ends_without_signal_keeps_a_little():
    with pytest.raises(UserError, match="is a FlowMatchEulerDiscreteScheduler, which has no noise"):
        noise_table("model", FlowMatchEulerDiscreteScheduler())
    whole = DDIMScheduler(rescale_betas_zero_snr=True)
    table = noise_table("model", whole)[0].alphas_cumprod
    assert float(whole.alphas_cumprod[-1]) < 1e-12 < table[-1] == 2**-32 < table[-2]
    assert table[:-1] == tuple(whole.alphas_cumprod.double().tolist())[:-1]
    euler = EulerDiscreteScheduler(rescale_betas_zero_snr=True)
    assert float(euler.alphas_cumprod[-1]) == 2**-24 > float(euler.alphas_cumprod[-2])
    table = noise_table("model", euler)[0].alphas_cumprod
    assert table[-1] == table[-2] / 2
