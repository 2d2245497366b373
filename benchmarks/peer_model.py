"""What both sides of a comparison share: one tiny pipeline, a count of its work, and a pipe.

Imported by `peer_ours.py` and by `peer_trl.py`, under two interpreters with other versions of the
same libraries, so it needs torch, diffusers and transformers, and nothing of either side. Each side
builds the Stable Diffusion pipeline in code and reads the weights from one file of each part. A
text encoder cannot travel as a saved pipeline: transformers 5 names its weights in another way
than transformers 4, which would silently draw new ones.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEPS, SAMPLES, GUIDANCE, RANK = 10, 16, 5.0, 4
TRAIN_BATCH = 4
"""Samples in one forward of DDPO's update; one optimiser step takes these at all times."""
LAST = 5
"""Steps that a reward's gradient goes back through."""
WORDS = ["a", "and", "red", "green", "blue", "bright", "dark", "circle", "square", "sky", "sea"]
CASES = tuple(
    f"{name} {kind}"
    for name in ("ddpo", "ddpo-whole", f"draft-{LAST}", f"draft-{STEPS}", "alignprop")
    for kind in ("lora", "full")
)
"""What is compared. In `ddpo` both sides ask the network about as many states at once; in
`ddpo-whole` ours asks about all states of an optimiser step at once, which TRL cannot."""
Epoch = Callable[[], object]
PROMPTS = ["a red circle", "a blue square and a green sea", "a dark sky", "a bright red sea"]


# --------------------------------------------------------------------------- the pipeline


def pipeline(weights: Path) -> Any:
    """The pipeline with the weights of a folder, which is filled where it is empty."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    made = StableDiffusionPipeline(
        **_networks(),
        tokenizer=_tokenizer(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in ("unet", "vae", "text_encoder"):
        _share(getattr(made, part), weights / f"{part}.safetensors")
    return made


def _share(network: nn.Module, file: Path) -> None:
    """Write a network's weights, or read those that the other side wrote, by names that both
    versions of transformers understand."""
    from safetensors.torch import load_file, save_file

    state = network.state_dict()
    plain = {name.removeprefix("text_model."): name for name in state}
    if file.exists():
        saved = load_file(file)
        network.load_state_dict({plain[name]: w for name, w in saved.items()}, strict=False)
        missing = set(plain) - set(saved) - {"embeddings.position_ids"}
        assert not missing, f"{file} lacks {sorted(missing)[:3]}"
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: state[long].contiguous() for name, long in plain.items()}, file)


def _networks() -> dict[str, nn.Module]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32),
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    config = CLIPTextConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return {"unet": unet, "vae": vae, "text_encoder": CLIPTextModel(config)}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ("<pad>", "<start>", "<end>", "<unknown>", *WORDS)
    vocabulary = {word: number for number, word in enumerate(names)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=16,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
    )


def scheduler() -> Any:
    """Stable Diffusion's own table, and DDIM as it ships with it."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


# --------------------------------------------------------------------------- the count


@dataclass
class Watch:
    """Work and time of one epoch: states through the UNet, pictures decoded, optimiser steps."""

    work: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, number: int = 1) -> None:
        self.work[name] = self.work.get(name, 0) + number

    def follow(self, unet: nn.Module, decoder: nn.Module) -> None:
        """Count what these two do from now on, with or without a graph, forwards and back."""

        def count_states(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            output_states: Tensor = output[0] if isinstance(output, tuple) else output.sample
            self.count("unet calls")
            self.count("unet states", len(output_states))
            if output_states.requires_grad:
                self.count("unet states with a graph", len(output_states))
                output_states.register_hook(
                    lambda slope: self.count("unet states backwards", len(slope))
                )

        unet.register_forward_hook(count_states)
        decoder.register_forward_hook(
            lambda module, given, output: self.count("pictures decoded", len(output))
        )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Processor time of what runs inside, added to `name`."""
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added to `name`."""

        def timed(*given: Any, **named: Any) -> Any:
            with self.timed(name):
                return work(*given, **named)

        return timed


# --------------------------------------------------------------------------- the pipe


def pipe() -> Any:
    """Where answers go: what libraries print goes to the terminal from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(answers: Any, watch: Watch, make: Callable[[str], Epoch], about: Any) -> None:
    """Tell what this side is, then run one epoch of the case on each line, and tell its cost.

    A case is made when it is first asked for, and forgotten when another one is.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    torch.set_num_threads(1)
    register_optimizer_step_post_hook(lambda *_: watch.count("optimiser steps"))
    print(json.dumps(about), file=answers, flush=True)
    case, epoch = "", None
    for line in sys.stdin:
        if epoch is None or line.strip() != case:
            case, epoch = line.strip(), None  # the memory of one is free before the next is made
            gc.collect()
            epoch = make(case)
        watch.work, watch.seconds = {}, {}
        wall, start = time.perf_counter(), time.process_time()
        epoch()
        cost = {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall}
        answer = cost | {"parts": watch.seconds, "work": watch.work}
        print(json.dumps(answer), file=answers, flush=True)


def versions(*names: str) -> dict[str, str]:
    """What is installed here."""
    from importlib.metadata import version
    from platform import python_version

    return {"python": python_version()} | {name: version(name) for name in names}
