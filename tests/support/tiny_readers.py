"""Vision-language models of random weights, of two families, saved as the real ones are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = (
    *("yes", "no", "Yes", "NO", "maybe", "1", "2", "3", "4", "5"),
    *("is", "this", "a", "cat", "dog", "and", "?", "user", "assistant", ":"),
)
CHAT = (
    "{% for turn in messages %}{{ turn['role'] }} : {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def tokenizer(words: tuple[str, ...], letters: bool = False):
    """Words between spaces, or single letters, to numbers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate((*SPECIAL, *words))}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    if letters:
        inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        inner.decoder = decoders.Fuse()
    else:
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def jittered(network):
    """With weights large enough that pictures differ in what the network makes of them."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return network.eval()


def _saying(network: Any, words: Any, answers: Sequence[str]) -> Any:
    """The network, which of its words generates no others than `answers`, if there are any."""
    if answers:
        spoken = set(words.convert_tokens_to_ids(list(answers)))
        silent = [number for number in range(len(words)) if number not in spoken]
        network.generation_config.suppress_tokens = silent
    return network


def llava(folder: Path, answers: Sequence[str] = ()) -> Path:
    """A LLaVA of random weights with a chat template."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    words = tokenizer((*WORDS, *answers))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **size, num_hidden_layers=2, image_size=16, patch_size=8, projection_dim=16
        ),
        text_config=LlamaConfig(
            **size,
            num_hidden_layers=2,
            num_key_value_heads=2,
            vocab_size=len(words),
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_id=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    network = jittered(LlavaForConditionalGeneration(config))
    _saying(network, words, answers).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def qwen(folder: Path, answers: Sequence[str] = ()) -> Path:
    """A Qwen2-VL of random weights, whose own processor knows videos too."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    torch.manual_seed(2)
    marks = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    words = tokenizer((*WORDS, *answers, *marks))
    words.add_special_tokens({"additional_special_tokens": list(marks)})
    start, end, image, video = words.convert_tokens_to_ids(list(marks))
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 16,
            "num_heads": 2,
            "mlp_ratio": 1,
            "patch_size": 4,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    network = jittered(Qwen2VLForConditionalGeneration(config))
    _saying(network, words, answers).save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=256).save_pretrained(folder)
    words.save_pretrained(folder)
    chat = CHAT.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>")
    (folder / "chat_template.jinja").write_text(chat)
    return folder
