"""Learned rewards: tiny networks of the real classes, against transformers' own computation."""

from __future__ import annotations

import http.server
import json
import logging
import shutil
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from scoretune.core import hub
from scoretune.core.errors import UserError
from scoretune.models import folders
from scoretune.rewards.base import Fingerprinted, has_gradient
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.rewards.networks import convert, heads, pretrained
from scoretune.rewards.networks.clip_preprocess import STD, Preprocessing, from_config

SIDE, WIDTH = 32, 8
PROMPTS = ["a red cat", "two dogs, and a bird", "a red cat", "Seven"]
IMAGES = (torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
EIGHT_BIT = [(image * 255).byte().permute(1, 2, 0).numpy() for image in IMAGES]


def clip_tokenizer():
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz,."]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def clip_config(width: int = WIDTH):
    from transformers import CLIPConfig

    words = len(clip_tokenizer())
    size = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 24}
    text = {"vocab_size": words, "max_position_embeddings": 20, "eos_token_id": words - 1}
    return CLIPConfig(
        text_config=size
        | text
        | {"num_hidden_layers": 2, "projection_dim": width, "bos_token_id": words - 2},
        vision_config=size
        | {"num_hidden_layers": 2, "projection_dim": width, "image_size": SIDE, "patch_size": 8},
        projection_dim=width,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder as `save_pretrained` of CLIPModel and CLIPProcessor makes it."""
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    CLIPModel(clip_config()).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    edges = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=edges).save_pretrained(folder)
    return folder


def cosines(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """cos(image, text) and exp(logit_scale) by transformers alone, on the rewards' own pixels."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder)
    words = CLIPTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=20, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(pixel_values=Preprocessing(side=SIDE, resize=SIDE)(IMAGES), **words)
    scale = model.logit_scale.exp().detach()
    return out.logits_per_image.diagonal() / scale, scale


# ---------------------------------------------------------------------------- pixels


def picture(kind: str, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    noise = torch.rand(1, 3, height, width, generator=generator)
    if kind == "smooth":
        small = torch.rand(1, 3, 5, 5, generator=generator)
        noise = F.interpolate(small, (height, width), mode="bilinear")
    return ((noise > 0.5).float() if kind == "binary" else noise).mul(255).round() / 255


@pytest.mark.parametrize("kind", ["noise", "smooth", "binary"])
@pytest.mark.parametrize("edges", [(224, 224), (300, 200), (201, 333), (512, 512), (31, 57)])
def test_pixels_are_those_of_the_image_processor(edges, kind):
    """Its 8-bit rounding between and after the two passes is all that differs: measured 1.10."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = picture(kind, *edges)
    eight_bit = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    theirs = CLIPImageProcessorPil()([eight_bit], return_tensors="pt").pixel_values
    levels = ((Preprocessing()(image) - theirs) * torch.tensor(STD)[:, None, None] * 255).abs()
    assert float(levels.max()) < 1.2
    assert float(levels.mean()) < 0.33
    if edges == (224, 224):
        torch.testing.assert_close(Preprocessing()(image), theirs, atol=1e-6, rtol=0)


def test_a_picture_that_is_padded_is_black_around():
    shown = Preprocessing(side=32, fit="pad").fitted(torch.full((1, 3, 20, 40), 0.5))
    assert shown.shape == (1, 3, 32, 32)
    filled = (shown[0, 0] > 0.01).float()
    assert filled.sum(0).tolist() == [16] * 32
    assert filled[8:24].sum() == 16 * 32


def test_the_rules_of_a_folder_are_read(tmp_path):
    source = str(tmp_path)

    def rules(side: int = 32, **config: object) -> Preprocessing:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        read = pretrained.preprocessing(source, revision=None)
        return from_config(read, source, side=side)

    assert rules() == Preprocessing(32, 32)
    mean, std = [0.5] * 3, [0.25] * 3
    found = rules(size=48, crop_size=32, image_mean=mean, image_std=std, resample=2)
    assert found == Preprocessing(32, 48, "crop", "bilinear", (0.5,) * 3, (0.25,) * 3)
    square = {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    assert rules(**square) == Preprocessing(32, 32, "stretch")
    with pytest.raises(UserError, match="makes pictures of 32 x 32 pixels, and the model takes 64"):
        rules(64, **square)
    with pytest.raises(UserError, match="has do_normalize=false"):
        rules(do_normalize=False)
    with pytest.raises(UserError, match="has resample=1: it must be 2 or 3"):
        rules(resample=1)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 48}}))
    assert pretrained.preprocessing(source, revision=None) == {"size": 48}


# ---------------------------------------------------------------------------- the rewards


def rewards_of(clip: Path, folder: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Each reward's name in a configuration, and its four numbers by transformers."""
    from transformers import CLIPVisionModelWithProjection

    cosine, scale = cosines(clip)
    vision = CLIPVisionModelWithProjection.from_pretrained(clip)
    with torch.no_grad():
        embedding = vision(Preprocessing(side=SIDE, resize=SIDE)(IMAGES)).image_embeds
    seen = embedding / embedding.norm(dim=-1, keepdim=True)
    layers = five_layers(WIDTH)
    save_file(named(layers), folder / "five.safetensors")
    save_file(
        {k: v.clone() for k, v in layers[0].state_dict().items()}, folder / "many.safetensors"
    )
    line = nn.Linear(WIDTH, 1)
    save_file(line.state_dict(), folder / "line.safetensors")
    blip, blip_score = image_reward(folder)
    of = f"model={clip}"
    return {
        "clip": (f"clip({of})", 100 * cosine),
        "clip as published": (f"clip({of}, scale=2.5, clipped=True)", 2.5 * cosine.clamp(min=0)),
        "pickscore": (f"pickscore({of})", scale * cosine),
        "hpsv2": (f"hpsv2({of})", cosine),
        "aesthetic": (
            f"aesthetic({of}, head={folder / 'five.safetensors'})",
            nn.Sequential(*layers)(seen).squeeze(-1).detach(),
        ),
        "aesthetic, linear": (
            f"aesthetic({of}, head={folder / 'line.safetensors'})",
            line(seen).squeeze(-1).detach(),
        ),
        "image_reward": (f"image_reward(model={blip})", blip_score),
    }


def five_layers(width: int, seed: int = 0) -> list[nn.Linear]:
    torch.manual_seed(seed)
    sizes = (width, 12, 10, 6, 4, 1)
    return [nn.Linear(a, b) for a, b in pairwise(sizes)]


def named(layers: list[nn.Linear], prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{name}.{key}": value.clone()
        for name, layer in zip(heads.FIVE, layers, strict=True)
        for key, value in layer.state_dict().items()
    }


@pytest.fixture(scope="module")
def rewards(clip, tmp_path_factory):
    return rewards_of(clip, tmp_path_factory.mktemp("rewards"))


KINDS = (
    *("clip", "clip as published", "pickscore", "hpsv2"),
    *("aesthetic", "aesthetic, linear", "image_reward"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_is_what_transformers_computes(rewards, kind):
    name, expected = rewards[kind]
    found = named_reward(name)(IMAGES, PROMPTS)
    assert found.shape == (4,)
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all()) and len(set(found.tolist())) >= 3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for batch in (1, 2, 3):
        fewer = named_reward(name[:-1] + f", batch={batch})")(IMAGES, PROMPTS)
        torch.testing.assert_close(fewer, found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_has_a_gradient_by_the_images(rewards, kind):
    reward = named_reward(rewards[kind][0])
    images = (IMAGES * 0.8 + 0.1).requires_grad_()
    assert has_gradient(reward, kind, IMAGES[0], PROMPTS[0])
    reward(images, PROMPTS).sum().backward()
    assert bool(torch.isfinite(images.grad).all())
    moved = images.grad.flatten(1).abs().amax(1) > 0
    positive = rewards[kind][1] > 0 if "published" in kind else torch.ones(4, dtype=torch.bool)
    assert torch.equal(moved, positive)
    slope = images.grad / images.grad.norm()
    with torch.no_grad():  # the slope is that of the reward: a step along it raises it by as much
        up, down = (reward(images + step * slope, PROMPTS).sum() for step in (0.02, -0.02))
    assert float((up - down) / 0.04) == pytest.approx(float(images.grad.norm()), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_in_half_precision_is_nearly_the_same(rewards, kind):
    name, expected = rewards[kind]
    found = named_reward(name[:-1] + ", dtype=bfloat16)")(IMAGES, PROMPTS)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max()) + 0.02


@pytest.mark.parametrize("kind", ["clip", "image_reward", "aesthetic"])
def test_loading_draws_no_random_numbers(rewards, kind):
    """A reward is loaded at its first call, which must not change what the run draws."""
    reward = named_reward(rewards[kind][0])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    reward(IMAGES[:1], PROMPTS[:1])
    assert torch.equal(torch.get_rng_state(), before)


def test_hpsv2_pads_and_the_others_crop(clip):
    wide = torch.zeros(1, 3, 32, 64)
    wide[..., 16:48] = IMAGES[:1, :, :32, :32]  # all that a crop sees
    square = wide[..., 16:48]
    by_name = {n: named_reward(f"{n}(model={clip})") for n in ("pickscore", "hpsv2")}
    cropped = by_name["pickscore"](wide, ["a"]) - by_name["pickscore"](square, ["a"])
    padded = by_name["hpsv2"](wide, ["a"]) - by_name["hpsv2"](square, ["a"])
    assert float(cropped.abs()) < 1e-5
    assert float(padded.abs()) > 1e-4


def test_a_long_prompt_is_cut_off_and_an_empty_one_is_read(clip):
    values = named_reward(f"clip(model={clip})")(IMAGES[:2], ["cat " * 99, ""])
    assert bool(torch.isfinite(values).all())


# ---------------------------------------------------------------------------- heads


def test_the_head_is_five_linear_layers_without_activation():
    head = heads.stacked(named(five_layers(8, seed=5)))
    embedding = F.normalize(torch.arange(1.0, 9.0), dim=0)
    product, shift = torch.eye(8), torch.zeros(8)
    for layer in five_layers(8, seed=5):
        product, shift = layer.weight @ product, layer.weight @ shift + layer.bias
    found = float(head(embedding))
    assert found == pytest.approx(float((product @ embedding + shift).detach()), abs=1e-6)
    assert found == pytest.approx(-0.144722, abs=1e-6)
    assert not any(p.requires_grad for p in head.parameters())


# ---------------------------------------------------------------------------- conversions


def blip_release(vision: int = 128, text: int = 64, side: int = 32) -> dict[str, torch.Tensor]:
    """Random weights under ImageReward's own names, with all that the release has besides."""
    torch.manual_seed(7)
    found = {"cls_token": (1, 1, vision), "pos_embed": (1, 1 + (side // 16) ** 2, vision)}
    found |= {"patch_embed.proj.weight": (vision, 3, 16, 16), "patch_embed.proj.bias": (vision,)}
    found |= {"norm.weight": (vision,), "norm.bias": (vision,)}
    for k in range(2):
        maps = {"attn.qkv": (3 * vision, vision), "attn.proj": (vision, vision)}
        maps |= {"mlp.fc1": (2 * vision, vision), "mlp.fc2": (vision, 2 * vision)}
        for name, shape in maps.items():
            found |= {f"blocks.{k}.{name}.weight": shape, f"blocks.{k}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"blocks.{k}.{name}.{kind}": (vision,) for kind in ("weight", "bias")}
    weights = {f"blip.visual_encoder.{k}": 0.1 * torch.randn(s) for k, s in found.items()}
    theirs = blip_text(vision, text).state_dict()
    weights |= {f"blip.text_encoder.{k}": 0.1 * torch.randn(v.shape) for k, v in theirs.items()}
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    weights |= {f"blip.{n}_proj.weight": torch.randn(4, 4) for n in ("vision", "text")}
    return weights | named(five_layers(text), "mlp.")


def blip_text(vision: int, text: int):
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    config = BlipTextConfig(
        vocab_size=len(bert_tokenizer()),
        hidden_size=text,
        encoder_hidden_size=vision,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=40,
    )
    return BlipTextModel(config, add_pooling_layer=False).eval()


def bert_tokenizer():
    from transformers import BertTokenizer

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = (*special, "a", "red", "cat", "two", "dogs", ",", "and", "bird", "seven")
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def vision_tower(weights: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """BLIP's ViT as its paper has it, from the released names; two heads of 64."""
    w = {k.removeprefix("blip.visual_encoder."): v for k, v in weights.items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def line(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    patches = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    x = torch.cat([w["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], 1)
    x = x + w["pos_embed"]
    for k in range(2):
        q, v_k, v = line(norm(x, f"blocks.{k}.norm1"), f"blocks.{k}.attn.qkv").chunk(3, -1)
        q, v_k, v = (part.unflatten(-1, (2, 64)).transpose(1, 2) for part in (q, v_k, v))
        mixed = F.scaled_dot_product_attention(q, v_k, v).transpose(1, 2).flatten(2)
        x = x + line(mixed, f"blocks.{k}.attn.proj")
        inner = F.gelu(line(norm(x, f"blocks.{k}.norm2"), f"blocks.{k}.mlp.fc1"))
        x = x + line(inner, f"blocks.{k}.mlp.fc2")
    return norm(x, "norm")


def image_reward(folder: Path) -> tuple[Path, torch.Tensor]:
    """A converted release, and its scores by the formula from the released names."""
    release = blip_release()
    convert.image_reward(release, folder / "blip")
    bert_tokenizer().save_pretrained(folder / "blip")
    text = blip_text(128, 64)
    prefix = "blip.text_encoder."
    own = {k.removeprefix(prefix): v for k, v in release.items() if k.startswith(prefix)}
    own.pop("embeddings.position_ids")
    text.load_state_dict(own)
    words = bert_tokenizer()(PROMPTS, padding="max_length", max_length=35, return_tensors="pt")
    with torch.no_grad():
        seen = vision_tower(release, Preprocessing(side=32, resize=32)(IMAGES))
        state = text(
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2]),
        ).last_hidden_state[:, 0]
        raw = nn.Sequential(*five_layers(64))(state).squeeze(-1)
    return folder / "blip", (raw - 0.16717362830052426) / 1.0333394966054072


def test_the_release_of_image_reward_is_renamed_and_nothing_else(tmp_path):
    release = blip_release()
    convert.image_reward(release, tmp_path)
    vision = json.loads((tmp_path / "config.json").read_text())["vision_config"]
    assert vision["layer_norm_eps"] == 1e-6  # too small to be seen in the scores
    assert (vision["image_size"], vision["num_attention_heads"]) == (32, 2)
    ours = convert.image_reward_weights(release)
    kept = {k for k in release if "position_ids" not in k and "_proj.weight" not in k}
    assert len(ours) == len(kept)
    stored = sorted(float(release[k].double().sum()) for k in kept)
    assert sorted(float(v.double().sum()) for v in ours.values()) == stored
    assert {k.partition(".")[0] for k in ours} == {"vision_model", "text_encoder", "head"}
    with pytest.raises(UserError, match=r"no rule for the weight 'blip\.queue'"):
        convert.image_reward_weights(release | {"blip.queue": torch.zeros(1)})


def open_clip_release(model) -> dict[str, torch.Tensor]:
    """The weights of a CLIPModel as open_clip names and shapes them."""
    w = {k: v.clone() for k, v in model.state_dict().items()}
    found = {"logit_scale": w["logit_scale"], "attn_mask": torch.zeros(20, 20)}
    towers = {"vision_model": "visual.transformer", "text_model": "transformer"}
    for tower, ours in towers.items():
        for k in range(2):
            old, new = f"{tower}.encoder.layers.{k}", f"{ours}.resblocks.{k}"
            for kind in ("weight", "bias"):
                stacked = [w[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                found[f"{new}.attn.in_proj_{kind}"] = torch.cat(stacked)
                found[f"{new}.attn.out_proj.{kind}"] = w[f"{old}.self_attn.out_proj.{kind}"]
                for n in (1, 2):
                    found[f"{new}.ln_{n}.{kind}"] = w[f"{old}.layer_norm{n}.{kind}"]
                    place = ("c_fc", "c_proj")[n - 1]
                    found[f"{new}.mlp.{place}.{kind}"] = w[f"{old}.mlp.fc{n}.{kind}"]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = w[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = w[f"vision_model.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = w[f"text_model.final_layer_norm.{kind}"]
    see, tell = "vision_model.embeddings", "text_model.embeddings"
    return found | {
        "visual.class_embedding": w[f"{see}.class_embedding"],
        "visual.positional_embedding": w[f"{see}.position_embedding.weight"],
        "visual.conv1.weight": w[f"{see}.patch_embedding.weight"],
        "visual.proj": w["visual_projection.weight"].t(),
        "token_embedding.weight": w[f"{tell}.token_embedding.weight"],
        "positional_embedding": w[f"{tell}.position_embedding.weight"],
        "text_projection": w["text_projection.weight"].t(),
    }


def test_a_release_of_open_clip_becomes_the_same_model(clip, tmp_path):
    from transformers import CLIPModel

    release = open_clip_release(CLIPModel.from_pretrained(clip))
    convert.hpsv2(release, tmp_path / "hps", like=str(clip))
    again = load_file(tmp_path / "hps" / "model.safetensors")
    stored = load_file(clip / "model.safetensors")
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[k], stored[k]) for k in stored)
    name = f"hpsv2(model={tmp_path / 'hps'}, processor={clip})"
    expected = named_reward(f"hpsv2(model={clip})")(IMAGES, PROMPTS)
    assert torch.equal(named_reward(name)(IMAGES, PROMPTS), expected)
    release.pop("visual.proj")
    with pytest.raises(UserError, match="visual_projection"):
        convert.hpsv2(release, tmp_path / "half", like=str(clip))


def test_a_block_of_open_clip_is_a_layer_of_transformers(clip):
    """Queries, keys and values in the order in which torch's own attention stacks them."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(clip).eval()
    release = open_clip_release(model)
    name = "visual.transformer.resblocks.0.attn."
    attention = nn.MultiheadAttention(64, 2, batch_first=True)
    attention.load_state_dict(
        {k.removeprefix(name): v for k, v in release.items() if k.startswith(name)}
    )
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    own = model.vision_model.encoder.layers[0].self_attn(x)[0]
    torch.testing.assert_close(attention(x, x, x, need_weights=False)[0], own)


# ---------------------------------------------------------------------------- what is refused


def said(name: str) -> str:
    with pytest.raises(UserError) as caught:
        named_reward(name)(IMAGES, PROMPTS)
    text = str(caught.value)
    assert "\n" not in text
    return text


EVERY = ("clip", "pickscore", "hpsv2", "aesthetic", "image_reward")


def of(kind: str, model: object, rewards: dict[str, tuple[str, torch.Tensor]]) -> str:
    head = rewards["aesthetic"][0].partition(", head=")[2].rstrip(")")
    return f"{kind}(model={model}" + (f", head={head})" if kind == "aesthetic" else ")")


@pytest.mark.parametrize("kind", EVERY)
def test_a_missing_folder_is_named(rewards, kind):
    told = said(of(kind, "./nowhere", rewards))
    assert "model folder './nowhere' does not exist: check the path" in told


@pytest.mark.parametrize("kind", EVERY)
def test_a_hub_id_that_is_not_here_is_named(rewards, kind):
    assert "cannot load the model 'nobody/nothing' (" in said(of(kind, "nobody/nothing", rewards))


@pytest.mark.parametrize("kind", EVERY)
def test_a_pickle_is_refused_with_the_line_that_converts_it(rewards, tmp_path, kind):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    told = said(of(kind, tmp_path, rewards))
    assert "pytorch_model.bin' is a pickle" in told
    assert 'python -c "import' in told


@pytest.mark.parametrize("kind", EVERY)
def test_a_network_that_lacks_a_weight_is_refused(clip, rewards, tmp_path, kind):
    blip = Path(rewards["image_reward"][0].partition("model=")[2].rstrip(")"))
    source = shutil.copytree(blip if kind == "image_reward" else clip, tmp_path / "half")
    weights = load_file(source / "model.safetensors")
    removed = next(key for key in weights if "vision_model" in key and "layer_norm1" in key)
    weights.pop(removed)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    told = said(of(kind, source, rewards))
    assert removed in told
    assert "1 of the weights" in told or f"lacks {removed}" in told


@pytest.mark.parametrize("kind", EVERY)
def test_weights_of_another_shape_are_refused(clip, rewards, tmp_path, kind):
    blip = Path(rewards["image_reward"][0].partition("model=")[2].rstrip(")"))
    source = shutil.copytree(blip if kind == "image_reward" else clip, tmp_path / "odd")
    weights = load_file(source / "model.safetensors")
    changed = next(key for key in weights if "vision_model" in key and "layer_norm1" in key)
    weights[changed] = torch.zeros(7)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert str(source) in said(of(kind, source, rewards))


def test_what_is_no_head_is_refused(clip, tmp_path):
    def told(weights: dict[str, torch.Tensor] | None, name: str = "head.safetensors") -> str:
        if weights is not None:
            save_file(weights, tmp_path / name)
        return said(f"aesthetic(model={clip}, head={tmp_path / name})")

    assert "takes embeddings of 9 numbers, and the model gives 8" in told(named(five_layers(9)))
    assert "is no head (it has a" in told({"a": torch.zeros(1)})
    assert "is no head (it gives 3 numbers, not one)" in told(nn.Linear(8, 3).state_dict())
    broken = named(five_layers(8)) | {"layers.2.weight": torch.zeros(10, 13)}
    assert "layers.2 takes 13 numbers and is given others" in told(broken)
    two = {f"layers.{k}.{n}": torch.zeros(1, 1) for k in (0, 1) for n in ("weight", "bias")}
    assert "is no head" in told(two)
    assert "cannot read the head" in told(None, "missing.safetensors")
    (tmp_path / "mlp.pth").write_bytes(b"\x80\x02.")
    refusal = told(None, "mlp.pth")
    assert "is a pickle" in refusal
    assert "s.save_file(torch.load(" in refusal and "weights_only=True)" in refusal


@pytest.mark.parametrize("name", ["aesthetic", "hpsv2", "image_reward"])
def test_a_reward_without_its_weights_says_where_they_come_from(name):
    assert "torch.load(" in said(name)


def test_the_pickle_of_hpsv2_is_refused_with_the_line_that_converts_it():
    told = said("hpsv2(model=HPS_v2.1_compressed.pt)")
    assert "scoretune.convert.hpsv2(torch.load('HPS_v2.1_compressed.pt', weights_only=True)" in told


def test_a_batch_of_none_and_too_few_prompts(clip):
    assert "batch=0: a reward scores at least one picture" in said(f"clip(model={clip}, batch=0)")
    with pytest.raises(UserError, match="4 images have 3 prompts"):
        named_reward(f"clip(model={clip})")(IMAGES, PROMPTS[:3])


def test_the_hub_is_asked_only_for_what_is_not_here(tmp_path, monkeypatch):
    from huggingface_hub import constants

    asked: list[bool] = []

    def load(here: bool) -> str:
        asked.append(here)
        if here:
            raise OSError("not in the cache\nat all")
        return "found"

    def told(source: str) -> str:
        asked.clear()
        with pytest.raises(UserError) as caught:
            hub.offline_first(source, "a model", load)
        assert asked == [True]
        return str(caught.value)

    def unreached() -> str:
        line = told("a/b")
        assert line.startswith(
            "cannot load the model 'a/b' (not in the cache): the hub was not asked "
        )
        assert line.endswith(", hf download a/b; or set model=FOLDER of a model")
        return line

    unreached()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    unreached()
    monkeypatch.setattr(hub, "reachable", lambda: True)
    assert str(tmp_path) in told(str(tmp_path))  # a folder is nothing to ask the hub for
    asked.clear()
    assert hub.offline_first("a/b", "a model", load) == "found"
    assert asked == [True, False]


def test_a_hub_that_is_down_is_found_out_soon_and_in_silence(monkeypatch, capfd):
    """The client alone would try six times, and tell of each."""
    from huggingface_hub import constants

    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
        start = time.perf_counter()
        for source in ("nobody/nothing", "nobody/else"):
            with pytest.raises(UserError, match=f"hf download {source}"):
                folders.described(source)
        assert time.perf_counter() - start < 30
    captured = capfd.readouterr()
    assert "Retry" not in captured.out + captured.err


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_hub_that_answers_is_reachable_whatever_it_says(monkeypatch, status):
    from huggingface_hub import constants

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert not hub.reachable()  # told to be offline
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert hub.reachable()
        server.shutdown()


def test_the_client_is_silent_only_while_it_is_asked():
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    with hub.quiet():
        assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
    assert logger.level == before


# ---------------------------------------------------------------------------- what scored


def test_a_model_of_the_hub_is_read_from_the_cache_and_known_by_its_commit(
    clip, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--someone--tiny"
    shutil.copytree(clip, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = named_reward("clip(model=someone/tiny)")(IMAGES, PROMPTS)
    assert torch.equal(found, named_reward(f"clip(model={clip})")(IMAGES, PROMPTS))
    (part,) = fingerprint("clip(model=someone/tiny)", named_reward("clip(model=someone/tiny)"))[
        "parts"
    ]
    assert part["commit"] == commit
    assert part["revision"] == "main"


@pytest.mark.parametrize("kind", EVERY)
def test_a_fingerprint_changes_with_the_weights(clip, rewards, tmp_path, kind):
    blip = Path(rewards["image_reward"][0].partition("model=")[2].rstrip(")"))
    source = shutil.copytree(blip if kind == "image_reward" else clip, tmp_path / "copy")
    name = of(kind, source, rewards)
    assert isinstance(named_reward(name), Fingerprinted)
    first = fingerprint(name, named_reward(name))
    assert json.loads(json.dumps(first)) == first
    (part,) = first["parts"]
    stored = source / "model.safetensors"
    assert part["sha256 model.safetensors"] == hub.sha256(stored)
    weights = load_file(stored)
    weights[next(iter(weights))] += 1
    save_file(weights, stored, metadata={"format": "pt"})
    assert fingerprint(name, named_reward(name)) != first
