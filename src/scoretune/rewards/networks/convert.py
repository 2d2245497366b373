"""Checkpoint conversion of published reward models: pure renaming, every weight accounted.

Users call it `scoretune.convert`. The releases are pickles of other libraries: whoever trusts one
converts it once, `scoretune.convert.hpsv2(torch.load(file, weights_only=True), folder)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.rewards.networks import pretrained

Rules = Sequence[tuple[str, str]]

_BLIP: Rules = (
    (r"blip\.visual_encoder\.cls_token", "vision_model.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision_model.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"\1.mlp."),
    (r"(\d+)\.", r"vision_model.encoder.layers.\1."),
    (r"blip\.text_encoder\.", "text_encoder."),
    (r"mlp\.layers\.", "head.layers."),
)
_BLIP_UNUSED = r"blip\.(text_encoder\.embeddings\.position_ids|(vision|text)_proj\..*)"

_CLIP: Rules = (
    (r"visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"visual\.proj$", "visual_projection.weight"),
    (r"visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"ln_final\.", "text_model.final_layer_norm."),
    (r"text_projection$", "text_projection.weight"),
    (r"(.*\.layers\.\d+)\.ln_([12])\.", r"\1.layer_norm\2."),
    (r"(.*\.layers\.\d+)\.attn\.out_proj\.", r"\1.self_attn.out_proj."),
    (r"(.*\.layers\.\d+)\.attn\.in_proj_", r"\1.self_attn.in_proj."),
    (r"(.*\.layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"(.*\.layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
)
_CLIP_UNUSED = r"attn_mask"  # a triangle, made anew


def renamed(weights: Mapping[str, Tensor], rules: Rules, unused: str) -> dict[str, Tensor]:
    """The weights renamed by each rule in turn. Raises UserError for a name that none knows."""
    converted: dict[str, Tensor] = {}
    for key, value in weights.items():
        if re.fullmatch(unused, key):
            continue
        name = key
        for old, new in rules:
            name = re.sub(f"^{old}", new, name)
        if name == key and key != "logit_scale":
            raise UserError(f"no rule for the weight {key!r}: this is another model, or release")
        converted[name] = value
    return converted


def image_reward_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ImageReward-v1.0's state dict under the names of `rewards/image_reward.py`."""
    return renamed(weights, _BLIP, _BLIP_UNUSED)


def open_clip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a CLIP of open_clip, or OpenAI's, under the names of a CLIPModel.

    Queries, keys and values lie in one matrix there and in three here; the two projections are
    transposed.
    """
    converted: dict[str, Tensor] = {}
    for name, value in renamed(weights, _CLIP, _CLIP_UNUSED).items():
        if ".in_proj." in name:
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                converted[name.replace("in_proj", f"{part}_proj")] = piece.clone()
        else:
            transposed = name in ("visual_projection.weight", "text_projection.weight")
            converted[name] = value.t().contiguous() if transposed else value
    return converted


def image_reward(weights: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write ImageReward's release as a folder: config.json and model.safetensors.

    Its tokenizer is BERT's: say `tokenizer=google-bert/bert-base-uncased`, or put one there.
    """
    from safetensors.torch import save_file
    from transformers import BlipConfig

    ours = {key: value.contiguous() for key, value in image_reward_weights(weights).items()}
    patches = ours["vision_model.embeddings.patch_embedding.weight"]
    places = ours["vision_model.embeddings.position_embedding"].shape[1] - 1
    words = ours["text_encoder.embeddings.word_embeddings.weight"]
    vision, text = patches.shape[0], words.shape[1]
    config = BlipConfig(
        vision_config={
            "hidden_size": vision,
            "intermediate_size": _rows(ours, "vision_model.encoder.layers.0.mlp.fc1.weight"),
            "num_hidden_layers": _depth(ours, "vision_model.encoder.layers."),
            "num_attention_heads": max(1, vision // 64),
            "image_size": round(places**0.5) * patches.shape[-1],
            "patch_size": patches.shape[-1],
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": words.shape[0],
            "hidden_size": text,
            "encoder_hidden_size": vision,
            "intermediate_size": _rows(
                ours, "text_encoder.encoder.layer.0.intermediate.dense.bias"
            ),
            "num_hidden_layers": _depth(ours, "text_encoder.encoder.layer."),
            "num_attention_heads": max(1, text // 64),
            "max_position_embeddings": _rows(
                ours, "text_encoder.embeddings.position_embeddings.weight"
            ),
        },
    )
    config.save_pretrained(folder)
    save_file(ours, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def hpsv2(
    weights: Mapping[str, Tensor],
    folder: str | Path,
    like: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
) -> None:
    """Write HPS v2's release as the folder of a CLIPModel of the same shape as `like`.

    `like` is a folder or hub id, of which config.json alone is read.
    """
    from transformers import CLIPConfig, CLIPModel

    path = pretrained.file(like, "config.json", revision=None)
    model = CLIPModel(CLIPConfig.from_pretrained(path.parent))
    try:
        model.load_state_dict(open_clip_weights(weights), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"these weights are not those of a model like {like!r}: {reason}"
        ) from error
    model.save_pretrained(folder)


def _rows(weights: Mapping[str, Tensor], key: str) -> int:
    return int(weights[key].shape[0])


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    layers = {
        key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)
    }
    return len(layers)
