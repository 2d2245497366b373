"""ImageReward: a BLIP that reads the prompt while looking at the picture (arXiv 2304.05977).

BLIP's ViT turns the picture into tokens; its text encoder attends to them while it reads; five
linear layers make one number of its first token, standardised with the published constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.core import hub
from scoretune.core.errors import UserError, listed
from scoretune.core.files import load_tensors
from scoretune.rewards.base import Batched, Precision
from scoretune.rewards.networks import clip_preprocess, heads, pretrained

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on the authors' data; from the release."""
TOKENS = 35


class Blip(nn.Module):
    """BLIP up to its states, by the names of transformers' BlipForImageTextRetrieval."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers.models.blip.modeling_blip import BlipTextModel, BlipVisionModel

        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pixels [B, 3, side, side], token ids and their mask [B, L] -> first states [B, D]."""
        pixels = pixels.to(self.vision_model.dtype)
        picture_states = self.vision_model(pixel_values=pixels).last_hidden_state
        states = self.text_encoder(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=picture_states,
            encoder_attention_mask=torch.ones_like(picture_states[..., 0], dtype=torch.long),
        ).last_hidden_state
        return cast(Tensor, states[:, 0])


@dataclass(frozen=True)
class ImageReward(Batched):
    """(head(first token) − 0.167) / 1.033: about −2 to 2. Has a gradient by the images.

    model: a folder or hub id with config.json (a BlipConfig), model.safetensors and a tokenizer.
    The release is a pickle under other names, which `scoretune.convert.image_reward` turns into
    such a folder. tokenizer: folder or hub id, where the model's own has none.
    """

    model: str = ""
    tokenizer: str = ""
    revision: str | None = None
    batch: int = 16
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise UserError(
                "image_reward needs model=FOLDER; make one of the released pickle, if you trust "
                f"it: {_command('ImageReward.pt')}"
            )

    def fingerprint(self) -> Mapping[str, str]:
        """The model's and the tokenizer's folder or hub id, with hashes or commit."""
        identity = pretrained.identity(self.model, revision=self.revision)
        if self.tokenizer:
            identity |= pretrained.identity(self.tokenizer, revision=None, part="tokenizer ")
        return identity

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        blip, head = (part.to(images.device) for part in self._network)
        fit = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
        words = self._tokenizer(list(prompts), return_tensors="pt", **fit).to(images.device)
        state = blip(self._preprocess(images), words.input_ids, words.attention_mask)
        return cast(Tensor, (head(state.float()).squeeze(-1) - MEAN) / STD)

    @cached_property
    def _config(self) -> Any:
        from transformers import BlipConfig

        pretrained.refuse_pickles(self.model, _command(self.model))
        path = pretrained.file(self.model, "config.json", revision=self.revision)
        return BlipConfig.from_pretrained(path.parent)

    @cached_property
    def _network(self) -> tuple[Blip, nn.Sequential]:
        from accelerate import init_empty_weights

        config = self._config  # first: it refuses what is no such folder
        path = pretrained.file(self.model, "model.safetensors", revision=self.revision)
        weights = load_tensors(path, "fetch it again")
        first = {k.removeprefix("head."): v for k, v in weights.items() if k.startswith("head.")}
        rest = {k: v for k, v in weights.items() if not k.startswith("head.")}
        try:
            head = heads.stacked(first)
            # BLIP draws its first token even so: a run's random numbers stay as they were
            with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
                blip = Blip(config)
            report = blip.load_state_dict(rest, strict=False, assign=True)
            if report.missing_keys or report.unexpected_keys:
                missing = f"lacks {listed(report.missing_keys)}" if report.missing_keys else ""
                raise ValueError(missing or f"has {listed(report.unexpected_keys)} too many")
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.model!r} holds no whole ImageReward ({reason}): convert it again: "
                f"{_command('ImageReward.pt')}"
            ) from error
        heads.check_width(head, self.model, config.text_config.hidden_size)
        blip.to(getattr(torch, self.dtype))
        return blip.requires_grad_(False).eval(), head

    @cached_property
    def _tokenizer(self) -> Any:
        source = self.tokenizer or self.model
        return pretrained.tokenizer(source, revision=None if self.tokenizer else self.revision)

    @cached_property
    def _preprocess(self) -> clip_preprocess.Preprocessing:
        side = int(self._config.vision_config.image_size)
        return clip_preprocess.Preprocessing(side=side, resize=side)


def _command(pickle: str) -> str:
    """The line that converts the release."""
    name = pickle if Path(pickle).suffix in hub.PICKLES else "ImageReward.pt"
    return (
        'python -c "import scoretune, torch; scoretune.convert.image_reward('
        f"torch.load({name!r}, weights_only=True), 'FOLDER')\""
    )
