"""What every family of models keeps, on a tiny random pipeline of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scoretune.commands.doctor.laws.models import laws_of
from scoretune.commands.families import families, parity
from scoretune.commands.families.parity import Family, Request
from scoretune.core.conditions import Condition, joined
from scoretune.core.config import Model
from scoretune.core.errors import UserError
from scoretune.data.picture_size import Size
from scoretune.data.prompts import Prompt, picture_of, read_prompts
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VE, noise_ratio, time_of_ratio
from scoretune.models import catalog
from scoretune.models.base import Pipelined
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.models.observed import Observed, of_fraction
from scoretune.models.recycled import recycle
from scoretune.models.tiny import transformers, videos
from scoretune.policy import Distilled, Policy, WithFeatures
from scoretune.rollout import rollout
from scoretune.training import run_folder

CPU = torch.device("cpu")
PIPELINES = tuple(each for each in parity.FAMILIES if each.name != "own")
ROWS = transformers.MADE | videos.MADE
QUICK = ("qwen-image",)
"""Of the families that are a row alone, what every run looks at: texts with masks, two calls, a
guidance of its own, an autoencoder of videos. The others are slow together."""
SLOW = ("stable-diffusion-v", "stable-diffusion-xl", "stable-diffusion-3", "flux", "flux-kontext")
SLOW += ("latent-consistency",)
"""Of the kind of others here, and each against diffusers' own call in a file of its own."""
THREE = tuple(e for e in PIPELINES if e.name in ("stable-diffusion", "flux", "unconditional"))
"""A UNet and a transformer on latents and a UNet on pixels: one code reads the folders of all."""
TWO_READERS = ("stable-diffusion-xl", "stable-diffusion-3", "flux", "flux-kontext", "hunyuan-video")
TOLERANCE = 1e-4
"""On pictures in [0, 1], between two implementations in float32."""


def at_its_time(family: Family) -> Any:
    """The family, among the slow tests unless it is looked at in every run."""
    slow = family.name in (*ROWS, *SLOW) and family.name not in QUICK
    return pytest.param(family, id=family.name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module", params=[at_its_time(each) for each in PIPELINES])
def family(request, tmp_path_factory) -> Iterator[Family]:
    """With the pictures that its prompts edit, if it edits any."""
    file = families.written(request.param, tmp_path_factory.mktemp("prompts"))
    with request.param.within():
        yield replace(request.param, prompts=read_prompts(str(file)).texts)


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory) -> Path:
    return family.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def backbone(folder) -> Pipelined:
    return loaded(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The folder, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def loaded(folder: Path, **settings: Any) -> Any:
    return catalog.load_backbone(Model(source=str(folder), rank=0, **settings))


def noise(backbone: Any, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn((batch, *backbone.shape), generator=generator)


def assert_equal(mine: Any, other: Any) -> None:
    """The same tokens to rounding, whether one tensor or several by name."""
    if isinstance(mine, torch.Tensor):
        return torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    return torch.testing.assert_close(mine.rows, other.rows, rtol=0, atol=2e-6)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --------------------------------------------------------------------------------- what it is


def test_what_it_is(folder, backbone):
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    assert kind in catalog.FAMILIES and type(backbone) is type(
        catalog.FAMILIES[kind].load(str(folder))
    )
    assert type(backbone.network).__name__ in catalog.FAMILIES[kind].networks
    for part in backbone.pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            assert not part.training
            assert not any(p.requires_grad for p in part.parameters())
    assert isinstance(run_folder.load(folder).backbone, type(backbone))


def test_every_family_has_a_miniature(tmp_path):
    """Of each family of the catalogue there is one here, and of each here one there."""
    kinds = {kind for kind, _ in ROWS.values()}
    for family in PIPELINES:
        if family.name not in ROWS:
            index = family.build(tmp_path / family.name) / "model_index.json"
            kinds.add(json.loads(index.read_text())["_class_name"])
    here = {catalog.FAMILIES[kind].kinds for kind in kinds}
    assert here == {each.kinds for each in catalog.FAMILIES.values()}
    assert len({each.name for each in parity.FAMILIES}) == len(parity.FAMILIES)


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_its_pictures_are_the_pipelines(family, folder, backbone, guidance):
    free = backbone.encode(family.prompts).null is None
    if guidance > 1 and free and not isinstance(backbone, Distilled):
        with pytest.raises(UserError, match="guidance needs an empty prompt"):
            family.parity(Request(Policy(backbone, GDDIM(1.0), guidance), folder, family.prompts))
        return
    policy = Policy(backbone, GDDIM(1.0), guidance)
    if isinstance(backbone, Distilled):
        backbone = loaded(folder)
        backbone.scale = guidance
        policy = Policy(backbone, GDDIM(1.0))
    assert family.parity(Request(policy, folder, family.prompts)) < TOLERANCE


TRAINED = ("qwen-image",)
"""A transformer; UNets are trained in every other test of training. The others are slow here."""


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(each, id=each.name, marks=[] if each.name in TRAINED else [pytest.mark.slow])
        for each in PIPELINES
        if each.name != "stable-diffusion-v"  # of the family of stable-diffusion
    ],
)
def test_it_trains_is_exported_and_goes_on(family, tmp_path):
    """`scoretune families`: parity, a LoRA, its reference, all weights, diffusers, a resume."""
    found = families.measure(family, tmp_path / "family")
    assert not found.failed, found.because
    learned = adapter_state(run_folder.load(tmp_path / "family" / "whole").backbone.network)
    ups = [bool(w.any()) for name, w in learned.items() if "lora_B" in name]
    assert sum(ups) > len(ups) / 2  # but for queries of captions that no later block reads
    full = run_folder.load(tmp_path / "family" / "full").backbone.network.state_dict()
    before = loaded(tmp_path / "family" / "model").network.state_dict()
    moved = [name for name, w in before.items() if not torch.equal(w, full[name])]
    assert len(moved) > len(before) / 2


def test_a_lora_adapts_attention(backbone, folder):
    network = loaded(folder).network
    add_adapter(network, 2, backbone.targets)
    adapted = {name.split(".lora")[0] for name in adapter_state(network)}
    last = {
        target for target in backbone.targets for name in adapted if name.endswith(f".{target}")
    }
    assert last == set(backbone.targets)
    assert all(any(part in name for part in (".attn", ".attention")) for name in adapted)


# ------------------------------------------------------------------------- prompts and pictures


def test_what_is_cut_off_a_prompt_is_told(family, backbone):
    picture = picture_of(family.prompts[0])
    short, long = (Prompt(text, picture=picture) for text in ("a red sea", "red " * 1000))
    assert not backbone.cut([short]) or family.name == "lumina-2"  # and its system's
    lines = backbone.cut([short, long])  # Qwen-Image encodes 1024, and takes 512
    whole = not backbone.encoders or family.name == "qwen-image-edit"  # is read to its end
    assert len(lines) == (0 if whole else 1) or family.name in TWO_READERS
    for line in lines:
        tokens, reads = int(line.split()[0]), int(line.split(" reads ")[1].split()[0])
        most = 1300 if family.name == "sana" else 1100  # with its instruction
        assert 1000 <= tokens + reads < most and "\n" not in line and len(line) <= 300


def test_prompts_are_encoded_one_by_one_as_together(family, backbone):
    prompts = list(family.prompts)
    if isinstance(backbone, Observed) and not backbone.row.masked:
        prompts = prompts[:1] * 3  # its pipeline fills a batch up to the longest, without a mask
    condition = backbone.encode(prompts)
    assert isinstance(condition, Condition) and len(condition.tokens) == len(prompts)
    assert_equal(joined([backbone.encode([each]).tokens for each in prompts]), condition.tokens)
    if isinstance(condition.null, torch.Tensor):
        again = backbone.null(backbone.text_states([""])[0])
        torch.testing.assert_close(again, condition.null, rtol=0, atol=1e-6)
    picked = torch.tensor([2, 0])
    x, t = noise(backbone, len(prompts)), torch.full((len(prompts),), 0.7)
    with torch.no_grad():
        whole = backbone.predict(x, t, condition.tokens)
        part = backbone.predict(x[picked], t[picked], condition.take(picked).tokens)
    torch.testing.assert_close(part, whole[picked], rtol=0, atol=1e-5)


def test_a_prompt_of_a_group_is_read_once(family, backbone):
    """Its encoders see each text once, and its rows are those of all texts together."""
    prompts = [prompt for prompt in family.prompts[:2] for _ in range(4)]
    rows: list[int] = []
    hooks = [
        getattr(backbone.pipeline, name).register_forward_hook(
            lambda module, args, kwargs, output: rows.append(
                len(args[0] if args else kwargs["input_ids"])
            ),
            with_kwargs=True,
        )
        for name in backbone.encoders
        if getattr(backbone.pipeline, name) is not None
    ]
    backbone.encode(prompts[:1])  # the empty prompt may be kept from then on
    rows.clear()
    condition = Policy(backbone, GDDIM(1.0)).encode(prompts)
    read, whole = list(rows), backbone.encode(prompts)
    for hook in hooks:
        hook.remove()
    assert all(count <= 3 for count in read) and bool(read) is bool(hooks)  # with an empty one
    assert_equal(condition.tokens, whole.tokens)


def test_cached_prompts_need_no_encoders(family, folder, backbone):
    found, before = loaded(folder), backbone.encode(family.prompts)
    found.cache_prompts(family.prompts)
    assert all(getattr(found.pipeline, name) is None for name in found.encoders)
    after = found.encode(family.prompts)
    assert_equal(after.tokens, before.tokens)
    assert (after.null is None) is (before.null is None)
    if before.null is not None:
        assert_equal(after.null, before.null)
    if not isinstance(before.tokens, torch.Tensor):  # what asks the pipeline for its times too
        assert torch.equal(found.deployed_times(4), backbone.deployed_times(4))
    with torch.no_grad():
        batch = len(family.prompts)
        found.predict(noise(found, batch), torch.full((batch,), 0.5), after.tokens)
    if found.encoders:
        with pytest.raises(UserError, match="was not encoded before"):
            found.encode(["a bright sea"])


def test_pictures_and_back(backbone):
    z = noise(backbone, 2).requires_grad_(True)
    images = backbone.decode(z)
    assert images.shape[0] == 2 and images.shape[-3] == 3 and images.dtype == torch.float32
    assert float(images.detach().min()) >= 0 and float(images.detach().max()) <= 1
    (slope,) = torch.autograd.grad(images.sum(), z)
    assert float(slope.abs().sum()) > 0
    codes = backbone.embed(images.detach())
    assert codes.shape == z.shape and codes.dtype == torch.float32
    backbone.decode_batch = 1  # one by one they are the same
    torch.testing.assert_close(backbone.decode(z), images, rtol=0, atol=1e-5)
    backbone.decode_batch = 0


# -------------------------------------------------------------------------------- the network


def test_features_for_a_critic(family, backbone):
    assert isinstance(backbone, WithFeatures)
    tokens = backbone.encode(family.prompts).tokens
    t, x = torch.full((len(tokens),), 0.5), noise(backbone, len(tokens)).requires_grad_(True)
    output, features = backbone.predict_with_features(x, t, tokens)
    assert torch.equal(output, backbone.predict(x, t, tokens))
    assert features.shape == (len(tokens), backbone.feature_size)
    assert features.dtype == torch.float32
    (slope,) = torch.autograd.grad(features.sum(), x)
    assert float(slope.abs().sum()) > 0


def test_half_precision_acts_and_judges_alike(family, folder, backbone):
    half = loaded(folder, precision="bf16")
    add_adapter(half.network, 2, half.targets)
    policy, condition = Policy(half, GDDIM(1.0)), half.encode(family.prompts)
    batch, times = len(family.prompts), grids.uniform(half.process, 3)
    start = noise(half, batch)
    path = rollout(policy, condition, times, torch.Generator().manual_seed(0), start)
    assert path.states.dtype == torch.float32
    assert torch.isfinite(path.log_probs).all()
    for k in path.noisy.nonzero()[:, 0].tolist():
        t, t_next = times[k].expand(batch), times[k + 1].expand(batch)
        law = policy.transition(path.states[k], t, t_next, condition)
        assert torch.equal(law.log_prob(path.states[k + 1]), path.log_probs[k])
    at = (start, torch.full((batch,), 0.5), condition.tokens)
    with torch.no_grad():
        rounded, whole = half.predict(*at).float(), backbone.predict(*at)
    if (
        getattr(backbone, "row", None) is None or backbone.row.clock is not of_fraction
    ):  # whose are rounded too, as the pipeline rounds them
        assert float((rounded - whole).abs().max()) < 0.1 * float(whole.std())
    assert half.decode(path.final).dtype == torch.float32
    assert half.embed(torch.rand(1, *half.decode(path.final).shape[1:])).dtype == torch.float32


def test_under_another_process_a_step_is_the_same(family, backbone):
    """The network's estimate of the data at the same noise ratio: x and t are moved, x0 is not."""
    moved, condition = recycle(backbone, VE(0.01, 14.0)), backbone.encode(family.prompts)
    batch = len(family.prompts)
    t, state = torch.full((batch,), 0.4), noise(backbone, batch)
    own = time_of_ratio(moved.process, noise_ratio(backbone.process, t.double())).float()
    with torch.no_grad():
        here = Policy(backbone, GDDIM(1.0)).estimate(state, t, condition).data
        scaled = state / backbone.process.alpha(t)[0] * moved.process.alpha(own)[0]
        there = Policy(moved, GDDIM(1.0)).estimate(scaled, own, condition).data
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("law", ["ratio, unchanged", "infinite log-probabilities", "same seed"])
def test_the_laws_of_any_model_hold(family, backbone, law):
    if family.name == "diffusion-transformer" or family.edits:
        pytest.skip("its prompts are classes or have pictures, and the laws' are words")
    (asked,) = [each for each in laws_of(Policy(backbone, GDDIM(1.0))) if law in each.name]
    with torch.no_grad():
        assert asked.measured(CPU) == pytest.approx(asked.expected, abs=asked.tolerance)


# ---------------------------------------------------------------------------------- bad input


def another_class(folder: Path) -> None:
    rewrite(folder / "model_index.json", _class_name="KolorsPipeline")


def another_family(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    part = "unet" if "unet" in index else "transformer"
    rewrite(folder / "model_index.json", **{part: ["diffusers", "HunyuanDiT2DModel"]})


def network_of(folder: Path) -> Path:
    return next(folder / part for part in ("unet", "transformer") if (folder / part).is_dir())


def pickled(folder: Path) -> None:
    weights = network_of(folder) / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "is no diffusers pipeline"),
    "half an index": (
        lambda f: (f / "model_index.json").write_text("{"),
        "is no diffusers pipeline",
    ),
    "another class": (another_class, "holds a KolorsPipeline, which is no family of this version"),
    "another network": (another_family, "a HunyuanDiT2DModel, is of no family of this version"),
    "no network": (lambda f: shutil.rmtree(network_of(f)), "cannot load the model"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "cannot load the model"),
    "no config": (lambda f: (network_of(f) / "config.json").unlink(), "cannot load the model"),
    "cut short": (
        lambda f: (network_of(f) / "diffusion_pytorch_model.safetensors").write_bytes(b"short"),
        "Pipeline with safetensors weights",
    ),
    "pickles": (pickled, "is a pickle, which can run code when read"),
}


@pytest.mark.parametrize("family", THREE, ids=lambda family: family.name, indirect=True)
@pytest.mark.parametrize("name", SPOILT)
def test_a_folder_that_is_no_such_model_says_so_in_a_line(copy, name):
    spoil, text = SPOILT[name]
    spoil(copy)
    with pytest.raises(UserError) as caught:
        loaded(copy)
    assert text in str(caught.value)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompts_size_is_as_that_of_the_setting(family, folder, backbone):
    """Places, sizes, pictures to edit and shifts of times are those of a model of `model.size`."""
    factor = backbone.factor if backbone.any_size else 1
    height, width = (side * factor for side in backbone.shape[-2:])
    asks = [
        Prompt(text, picture=picture_of(text), size=Size(2 * width, height, "row 1"))
        for text in family.prompts[:2]
    ]
    if not backbone.any_size:
        with pytest.raises(UserError, match=r"row 1: it asks for \d+x\d+, and a .* draws one size"):
            backbone.encode(asks)
        return
    other = loaded(folder, size=f"{2 * width}x{height}")
    mine, theirs = backbone.encode(asks), other.encode(family.prompts[:2])
    assert_equal(mine.tokens, theirs.tokens)
    x, t = noise(other, 2), torch.full((2,), 0.5)
    with torch.no_grad():
        output = backbone.predict(x, t, mine.tokens)
        torch.testing.assert_close(output, other.predict(x, t, theirs.tokens), rtol=0, atol=1e-6)
    assert output.shape[1:] == other.shape == backbone.in_size_of(asks).shape
    assert torch.equal(backbone.in_size_of(asks).deployed_times(3), other.deployed_times(3))
    assert backbone.decode(x).shape[-2:] == (height, 2 * width)


def test_a_family_takes_no_other_pipeline(folder, backbone):
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    for each in {id(each): each for each in catalog.FAMILIES.values()}.values():
        if kind not in each.kinds and not each.needed:
            with pytest.raises(UserError, match=f"holds a {kind}, not a {each.kinds[0]}"):
                each.load(str(folder))


def test_a_size_that_does_not_divide(folder):
    with pytest.raises(UserError, match=r"model\.size=\d+ is no multiple of \d+: set one, in pix"):
        loaded(folder, size=33)
