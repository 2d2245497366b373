"""What we export others load, and draw the same pictures with it: LoRAs, and merged models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import FluxLoraLoaderMixin
from safetensors.torch import load_file, save_file

from networks import score_network
from scoretune.core.config import Model
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import process_named
from scoretune.models import export, lora, lora_files
from scoretune.models.families import FAMILIES
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.models.score_network import load as load_scores
from scoretune.models.score_network import save as save_scores
from scoretune.models.tiny import flux
from scoretune.policy import Policy
from slow_cases import slow

PROMPTS = ["a red seven", "two fives", "a three left of a nine"]
STEPS = 10


def finetuned() -> Policy:
    """The shipped model with an adapter that does something."""
    backbone = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))
    add_adapter(backbone.network, rank=4)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in adapter_state(backbone.network).items():
        if "lora_B" in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return Policy(backbone, GDDIM(1.0))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return finetuned()


@pytest.fixture(scope="module")
def theirs(policy, tmp_path_factory) -> StableDiffusionPipeline:
    folder = tmp_path_factory.mktemp("lora")
    export.lora(policy, folder)
    pipe = StableDiffusionPipeline.from_pretrained(world.shipped(), safety_checker=None)
    pipe.load_lora_weights(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def ours(policy: Policy, guidance: float, latents: torch.Tensor) -> torch.Tensor:
    guided = Policy(policy.backbone, policy.kernel, guidance)
    condition = policy.backbone.encode(PROMPTS)
    process = policy.backbone.process
    times = grids.diffusers_times(process, STEPS, spacing="trailing")
    return policy.backbone.decode(solvers.ddim(process, guided.field(condition), latents, times))


def drawn(pipe, guidance: float, latents: torch.Tensor) -> torch.Tensor:
    return pipe(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        eta=0.0,
        latents=latents.clone(),
        output_type="pt",
    ).images


@pytest.mark.parametrize("guidance", [slow(1.0), 3.0])
def test_the_same_pictures_in_plain_diffusers(policy, theirs, guidance):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    mine, pictures = ours(policy, guidance, latents), drawn(theirs, guidance, latents)
    assert torch.isfinite(pictures).all()
    torch.testing.assert_close(mine, pictures, rtol=0, atol=1e-4)
    with policy.reference():  # the adapter is what made them so
        assert float((ours(policy, guidance, latents) - pictures).abs().max()) > 0.01


def test_every_adapter_weight_arrives(policy, theirs):
    own = adapter_state(policy.backbone.network)
    loaded = {n: p for n, p in theirs.unet.named_parameters() if "lora_" in n}
    assert sorted(t.shape for t in own.values()) == sorted(p.shape for p in loaded.values())
    assert mass(loaded.values()) == pytest.approx(mass(own.values()), rel=1e-6)


def mass(tensors) -> float:
    return sum(float(tensor.detach().abs().sum()) for tensor in tensors)


def test_equal_adapters_make_equal_files(policy, tmp_path):
    hashes = {
        hashlib.sha256(export.lora(policy, tmp_path / str(k)).read_bytes()).hexdigest()
        for k in range(6)
    }
    assert len(hashes) == 1


def test_nothing_to_export(tmp_path):
    bare = Policy(FAMILIES["StableDiffusionPipeline"].load(str(world.shipped())), GDDIM(1.0))
    with pytest.raises(UserError, match="nothing to export"):
        export.lora(bare, tmp_path)


# ------------------------------------------------------------------------------ other forms

UNEVEN = {"rank_pattern": {"attn2.to_q": 3, "conv1": 5}, "alpha_pattern": {"attn2.to_k": 1.5}}


def uneven() -> Policy:
    """The shipped model with ranks and alphas that differ, on attention and convolutions."""
    from peft import LoraConfig, inject_adapter_in_model

    backbone = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "ff.net.2"]
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, **UNEVEN)
    inject_adapter_in_model(config, backbone.network, adapter_name="default")
    return Policy(stirred(backbone), GDDIM(1.0))


def stirred(backbone, seed: int = 3):
    """An adapter of numbers that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter_state(backbone.network).items():
        if "lora_" in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return backbone


@pytest.fixture(scope="module")
def odd() -> Policy:
    return uneven()


def output(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    x, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 10, 64)))
    width = unet.config.cross_attention_dim
    with torch.no_grad():
        return unet(x, torch.tensor([300, 700]), states[..., :1].expand(-1, -1, width)).sample


def bare():
    return FAMILIES["StableDiffusionPipeline"].load(str(world.shipped())).network


def read_by_peft(folder: Path):
    from peft import PeftModel

    return PeftModel.from_pretrained(bare(), folder).base_model.model


def read_by_diffusers(folder: Path):
    pipe = StableDiffusionPipeline.from_pretrained(world.shipped(), safety_checker=None)
    pipe.load_lora_weights(folder, weight_name=next(folder.glob("*.safetensors")).name)
    return pipe.unet


def read_by_us(folder: Path):
    network = bare()
    lora.load_lora(network, folder)
    return network


READERS = {"diffusers": read_by_diffusers, "peft": read_by_peft, "kohya": read_by_diffusers}


@pytest.mark.parametrize(
    ("form", "reader"),
    [
        *((form, "theirs") for form in export.FORMS),
        *((form, "ours") if form == "kohya" else slow(form, "ours") for form in export.FORMS),
    ],
)
def test_ranks_and_alphas_of_layers_survive_every_form(odd, tmp_path, form, reader):
    export.write(odd, tmp_path, form)
    network = (READERS[form] if reader == "theirs" else read_by_us)(tmp_path)
    expected = output(odd.backbone.network)
    torch.testing.assert_close(output(network), expected, rtol=0, atol=1e-6)
    with odd.reference():
        assert float((output(odd.backbone.network) - expected).abs().max()) > 0.01


@pytest.mark.parametrize("form", list(export.FORMS))
def test_equal_adapters_make_equal_files_in_every_form(odd, tmp_path, form):
    folders = [tmp_path / str(k) for k in range(4)]
    for folder in folders:
        export.write(odd, folder, form)
    written = [sorted((p.name, p.read_bytes()) for p in f.iterdir()) for f in folders]
    assert all(files == written[0] for files in written)


def test_kohyas_own_rule_gives_what_the_adapter_adds(odd, tmp_path):
    """alpha/r · up down, layer by layer; one alpha for all, which is all that diffusers reads."""
    tensors = load_file(export.write(odd, tmp_path, "kohya"))
    deltas = lora.deltas(odd.backbone.network)
    assert len(tensors) == 3 * len(deltas)
    assert {float(t) for n, t in tensors.items() if n.endswith(".alpha")} == {6.0}
    for name, delta in deltas.items():
        flat = "lora_unet_" + name.replace(".", "_")
        down, up = (tensors[f"{flat}.lora_{half}.weight"] for half in ("down", "up"))
        rank = 3 if name.endswith("attn2.to_q") else 5 if name.endswith("conv1") else 2
        assert len(down) == rank
        found = 6.0 / rank * up.flatten(1) @ down.flatten(1)
        torch.testing.assert_close(found.view(delta.shape), delta, rtol=0, atol=1e-6)


def original(name: str, between: int) -> str:
    """A UNet's layer as the original code calls it: blocks numbered through."""
    kind, place = name.removeprefix("lora_unet_").split("_attentions_")
    if kind == "mid_block":
        return f"lora_unet_middle_block_1_{place.split('_', 1)[1]}"
    block, (layer, rest) = int(kind.split("_")[-1]), place.split("_", 1)
    if kind.startswith("down"):
        return f"lora_unet_input_blocks_{1 + block * between + int(layer)}_1_{rest}"
    return f"lora_unet_output_blocks_{block * between + int(layer)}_1_{rest}"


def test_names_of_the_original_code_are_read_too(policy, tmp_path):
    tensors = load_file(export.kohya(policy, tmp_path))
    between = policy.backbone.network.config.layers_per_block + 1
    named = {}
    for name, tensor in tensors.items():
        layer, end = name.split(".", 1)
        named[f"{original(layer, between)}.{end}"] = tensor * (0.5 if end == "alpha" else 1.0)
    save_file(named, tmp_path / "original.safetensors")
    network = bare()
    lora.load_lora(network, tmp_path / "original.safetensors")
    deltas, found = lora.deltas(policy.backbone.network), lora.deltas(network)
    assert found.keys() == deltas.keys()
    for name, delta in deltas.items():
        torch.testing.assert_close(found[name], 0.5 * delta, rtol=0, atol=1e-6)


def test_a_transformer_in_kohyas_form(tmp_path):
    """diffusers' own reading of it is W + B A of the adapter, layer by layer."""
    backbone = FAMILIES["FluxPipeline"].load(str(flux.build(tmp_path / "flux")))
    add_adapter(backbone.network, rank=2)
    policy = Policy(stirred(backbone), GDDIM(1.0))
    path = export.write(policy, tmp_path / "lora", "kohya")
    found = FluxLoraLoaderMixin.lora_state_dict(str(path))
    deltas = lora.deltas(backbone.network)
    assert deltas
    for layer, delta in deltas.items():
        a, b = (found[f"transformer.{layer}.lora_{half}.weight"] for half in "AB")
        torch.testing.assert_close(b @ a, delta, rtol=0, atol=1e-6)
    other = FAMILIES["FluxPipeline"].load(str(tmp_path / "flux"))
    lora.load_lora(other.network, path)
    for layer, delta in lora.deltas(other.network).items():
        torch.testing.assert_close(delta, deltas[layer], rtol=0, atol=1e-6)


def test_half_precision_may_be_mixed_and_is_added_in_full(policy, tmp_path):
    export.lora(policy, tmp_path)
    tensors = load_file(tmp_path / lora_files.NAME)
    halves = (torch.float16, torch.float32, torch.bfloat16)
    mixed = {n: t.to(halves[i % 3]) for i, (n, t) in enumerate(sorted(tensors.items()))}
    save_file(mixed, tmp_path / "mixed.safetensors")
    network = bare().to(torch.bfloat16)
    lora.load_lora(network, tmp_path / "mixed.safetensors")
    kept = {n: p for n, p in network.named_parameters() if "lora_" in n}
    assert {p.dtype for p in kept.values()} == {torch.float32}
    for name, parameter in kept.items():
        torch.testing.assert_close(
            parameter.data, mixed["unet." + name.replace(".default", "")].float(), rtol=0, atol=0
        )


def test_a_lora_that_cannot_be_used_says_so_in_a_line(policy, tmp_path):
    export.lora(policy, tmp_path)
    tensors = load_file(tmp_path / lora_files.NAME)
    first = next(n for n in tensors if n.endswith("to_k.lora_A.weight"))
    wide = {n: t.repeat(1, 2) if "to_k.lora_A" in n else t for n, t in tensors.items()}
    whole = {n: t.to(torch.int8) for n, t in tensors.items()}
    half = {n: t for n, t in tensors.items() if n != first.replace("lora_A", "lora_B")}
    strange = {"lora_unet_double_blocks_0_x.lora_down.weight": torch.zeros(1, 1)}
    spoken = {"lora_te_q.lora_down.weight": torch.zeros(1, 1)}
    network = bare()
    for chosen, said in [
        (wide, r"to_k takes 160 to 80 and 80 to 80 numbers, there and here.*give the model"),
        (whole, "holds int8 numbers .*give one in float32"),
        (half, "lacks half of the layer"),
        (strange, "is not of this model .*double_blocks_0_x"),
        (spoken, "text encoder"),
    ]:  # each of which leaves the network as it is
        path = tmp_path / "x.safetensors"
        save_file({n: t.contiguous() for n, t in chosen.items()}, path)
        with pytest.raises(UserError, match=said) as caught:
            lora.load_lora(network, path)
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------ merged models


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """The shipped model, which is stored in float16, in float32."""
    folder = tmp_path_factory.mktemp("base") / "full"
    pipe = StableDiffusionPipeline.from_pretrained(world.shipped(), safety_checker=None)
    pipe.save_pretrained(folder)
    return folder


def test_a_merged_pipeline_draws_the_same_pictures(policy, full, tmp_path):
    folder = export.merge(policy, Model(source=str(full)), tmp_path / "merged")
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    assert not any("lora" in name for name, _ in pipe.unet.named_parameters())
    assert not list(folder.rglob("*.bin"))
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    expected = ours(policy, 3.0, latents)
    torch.testing.assert_close(drawn(pipe, 3.0, latents), expected, rtol=0, atol=1e-4)
    with policy.reference():
        assert float((ours(policy, 3.0, latents) - expected).abs().max()) > 0.01


def test_convolutions_and_alphas_are_merged_too(odd, full, tmp_path):
    export.merge(odd, Model(source=str(full)), tmp_path / "merged")
    merged = FAMILIES["StableDiffusionPipeline"].load(str(tmp_path / "merged")).network
    expected = output(odd.backbone.network)
    torch.testing.assert_close(output(merged), expected, rtol=0, atol=2e-6)


def test_a_shipped_model_is_merged_by_its_name(policy, tmp_path):
    """Its weights have float16, so the pictures are the same up to that."""
    export.merge(policy, Model(), tmp_path / "merged")
    merged = FAMILIES["StableDiffusionPipeline"].load(str(tmp_path / "merged")).network
    expected = output(policy.backbone.network)
    torch.testing.assert_close(output(merged), expected, rtol=0, atol=1e-3)
    with policy.reference():
        assert float((output(policy.backbone.network) - expected).abs().max()) > 0.01


def test_a_merged_model_keeps_the_dtypes_of_its_base(tmp_path):
    """The sum is taken in float32 and rounded once, whatever the run computed in."""
    pipe = StableDiffusionPipeline.from_pretrained(world.shipped(), safety_checker=None)
    pipe.unet.to(torch.bfloat16)
    pipe.save_pretrained(tmp_path / "half")
    backbone = FAMILIES["StableDiffusionPipeline"].load(str(tmp_path / "half"), dtype=torch.float16)
    add_adapter(backbone.network, rank=4)
    policy = Policy(stirred(backbone), GDDIM(1.0))
    folder = export.merge(policy, Model(source=str(tmp_path / "half")), tmp_path / "merged")
    base = load_file(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    merged = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}
    autoencoder = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in autoencoder.values()} == {torch.float32}
    deltas = lora.deltas(backbone.network)
    assert merged.keys() == base.keys()
    for name, weight in merged.items():
        delta = deltas.get(name.removesuffix(".weight"), torch.zeros(()))
        assert torch.equal(weight, (base[name].float() + delta).bfloat16()), name


def test_a_full_fine_tuning_is_saved_as_it_was_trained(tmp_path):
    backbone = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.add_(0.01)
    policy = Policy(backbone, GDDIM(1.0))
    with pytest.raises(UserError, match=r"nothing to export.*--merge"):
        export.write(policy, tmp_path / "lora")
    folder = export.merge(policy, Model(rank=0), tmp_path / "merged")
    saved = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(saved[name], tensor), name


def test_a_merged_network_of_ones_own(tmp_path):
    own = score_network("mlp", (2,), process=process_named("VP()"))
    for parameter in own.network.parameters():
        parameter.data.add_(0.02)
    save_scores(own, tmp_path / "base")
    tuned = load_scores(tmp_path / "base")
    add_adapter(tuned.network, rank=2, targets=("mix",))
    policy = Policy(stirred(tuned), GDDIM(1.0))
    export.merge(policy, Model(source=str(tmp_path / "base")), tmp_path / "merged")
    x, t, nothing = torch.randn(3, 2), torch.tensor([0.1, 0.5, 0.9]), torch.zeros(3, 0, 0)
    found, expected, before = (
        model.predict(x, t, nothing).detach()
        for model in (load_scores(tmp_path / "merged"), tuned, own)
    )
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)
    assert float((expected - before).abs().max()) > 1e-3


def test_a_folder_that_is_in_use_is_left_alone(policy, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty"):
        export.merge(policy, Model(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --to"):
        export.write(policy, tmp_path / "file" / "below")
    with pytest.raises(UserError, match="did you mean 'kohya'"):
        export.write(policy, tmp_path / "new", "koyha")


# ------------------------------------------------------------------------------ the hub


class Hub:
    """Stands for huggingface_hub's HfApi."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.repos, self.uploads = error, [], []

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if self.error is not None:
            raise self.error
        self.repos.append((name, private, exist_ok))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.uploads.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))


def test_a_folder_is_uploaded_private_unless_told_otherwise(tmp_path):
    (tmp_path / "README.md").write_text("x")
    hub = Hub()
    assert export.push(tmp_path, "org/name", api=hub) == "https://hub/org/name"
    export.push(tmp_path, "org/other", public=True, api=hub)
    assert hub.repos == [("org/name", True, True), ("org/other", False, True)]
    assert hub.uploads == [("org/name", ["README.md"]), ("org/other", ["README.md"])]


def test_a_hub_that_cannot_be_had_is_a_line(tmp_path, monkeypatch):
    import httpx2 as httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    answer = httpx.Response(403, request=httpx.Request("POST", "https://hub"))
    refused = HfHubHTTPError("Forbidden\nmore", response=answer)
    for error, said in [
        (OfflineModeIsEnabled("offline mode is enabled\nmore"), "cannot reach the hub .*go online"),
        (ConnectionError("no route"), "cannot reach the hub .no route"),
        (refused, "refused to take 'o/n' .Forbidden.*token"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            export.push(tmp_path, "o/n", api=Hub(error))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="ORG/NAME, got 'name'"):
        export.push(tmp_path, "name", api=Hub())
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        export.push(tmp_path, "o/n")
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match=r"wants a token.*hf auth login"):
        export.push(tmp_path, "o/n")
