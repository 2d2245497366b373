"""Stable Diffusion 3 as a backbone: tiny random pipelines against diffusers' own call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from scoretune import recipes
from scoretune.commands.doctor.laws.models import laws_of
from scoretune.commands.pretrain.networks import tokenizer
from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.core.records import Condition
from scoretune.data.scenes import world
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM, Renoise, Still
from scoretune.diffusion.processes import VP, RectifiedFlow, noise_ratio, time_of_ratio
from scoretune.models import catalog, export, stable_diffusion, stable_diffusion_3
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.models.recycled import recycle
from scoretune.models.stable_diffusion_3 import StableDiffusion3
from scoretune.policy import Policy, WithFeatures
from scoretune.rollout import prior, rollout
from scoretune.training import build, overrides, run_folder

PROMPTS = ["a red seven", "two fives", "a three left of a nine"]
CPU = torch.device("cpu")


# --------------------------------------------------------------------------- tiny pipelines


def clip(words: Any, width: int, projection: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=10,
            projection_dim=projection,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def t5(words: Any, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=width,
            d_kv=4,
            d_ff=2 * width,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
        )
    )


def transformer(joint: int, pooled: int) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=joint,
        caption_projection_dim=16,
        pooled_projection_dim=pooled,
        pos_embed_max_size=2,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),  # as SD3.5 medium has them
    )


def autoencoder(shift: float | None = 0.06) -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=shift,
        mid_block_add_attention=False,
    )


def pipeline(
    *, third: bool = False, projection: int = 10, shift: float = 1.0, offset: float | None = 0.06
) -> StableDiffusion3Pipeline:
    """CLIP encoders of widths 12 and 8, joint states of 24, random weights that say something."""
    torch.manual_seed(7)
    words = tokenizer()
    network = transformer(24, 2 * projection)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return StableDiffusion3Pipeline(
        transformer=network.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=autoencoder(offset).eval(),
        text_encoder=clip(words, 12, projection).eval(),
        tokenizer=words,
        text_encoder_2=clip(words, 8, projection).eval(),
        tokenizer_2=words,
        text_encoder_3=t5(words, 24).eval() if third else None,
        tokenizer_3=words if third else None,
    )


def saved(folder: Path, pipe: Any, tokens: int | None = None) -> Path:
    """A folder of the pipeline, in which `tokens` stand in T5's place."""
    if tokens is not None:
        pipe.transformer.register_to_config(_max_sequence_length=tokens)
    pipe.save_pretrained(folder)
    return folder


def plain(folder: Path, third: bool = False) -> StableDiffusion3Pipeline:
    """The folder as diffusers loads it."""
    absent = {} if third else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("model"), pipeline(), 3)


@pytest.fixture(scope="module")
def backbone(folder) -> StableDiffusion3:
    return stable_diffusion_3.load(str(folder))


@pytest.fixture(scope="module")
def adapted(folder) -> StableDiffusion3:
    """The same with a fresh adapter."""
    found = stable_diffusion_3.load(str(folder))
    add_adapter(found.network, 2)
    return found


def noise(batch: int = len(PROMPTS), seed: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def ours(found: StableDiffusion3, guidance: float, times: torch.Tensor, solver: str = "euler"):
    policy = Policy(found, Renoise(Still()), guidance)
    field = policy.field(found.encode(PROMPTS))
    solve = solvers.SOLVERS[solver].function
    return solve(found.process, field, noise(), times)


@torch.no_grad()
def theirs(pipe: Any, guidance: float, steps: int, tokens: int, kind: str = "latent"):
    return pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise(),
        max_sequence_length=tokens,
        output_type=kind,
    ).images


def scheduled(pipe: Any, steps: int) -> torch.Tensor:
    """The scheduler's own times, which for shift 3 it shifts twice."""
    pipe.scheduler.set_timesteps(steps)
    return pipe.scheduler.sigmas


# ------------------------------------------------------------------------------------ parity


@pytest.mark.parametrize(("shift", "guidance"), [(1.0, 4.5), (3.0, 1.0)])
@pytest.mark.parametrize(("third", "tokens"), [(False, 0), (False, 5), (True, 10), (True, None)])
def test_euler_is_the_pipeline(tmp_path, third, tokens, shift, guidance):
    saved(tmp_path, pipeline(third=third, shift=shift), tokens)
    found, pipe = stable_diffusion_3.load(str(tmp_path)), plain(tmp_path, third)
    times, length = scheduled(pipe, 6), 256 if tokens is None else tokens
    mine, latents = ours(found, guidance, times), theirs(pipe, guidance, 6, length)
    assert float(latents.std()) > 0.5
    torch.testing.assert_close(mine, latents, rtol=0, atol=1e-4)
    pictures = theirs(pipe, guidance, 6, length, "pt")
    with torch.no_grad():
        torch.testing.assert_close(found.decode(mine), pictures, rtol=0, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_shipped_flow_is_the_pipeline(guidance):
    """On our uniform grid; its scheduler's own has a last step of 1/1000."""
    folder = world.shipped("scenes-flow")
    found, pipe = stable_diffusion_3.load(str(folder)), plain(folder)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    times = grids.uniform(found.process, 8)
    pictures = pipe(
        PROMPTS,
        sigmas=times[:-1].tolist(),
        guidance_scale=guidance,
        latents=latents.clone(),
        max_sequence_length=0,
        output_type="pt",
    ).images
    field = Policy(found, Renoise(Still()), guidance).field(found.encode(PROMPTS))
    with torch.no_grad():
        mine = solvers.euler(found.process, field, latents, times)
        torch.testing.assert_close(found.decode(mine), pictures, rtol=0, atol=1e-4)


def test_the_scheduler_shifts_once_or_twice(backbone):
    """Shift 1 is uniform from 1 down to 1/1000, then 0; shift 3 moves that twice."""
    once = FlowMatchEulerDiscreteScheduler(shift=1.0)
    once.set_timesteps(10)
    uniform = grids.uniform(backbone.process, 9, t_end=1e-3)
    assert once.sigmas.tolist() == pytest.approx([*uniform.tolist(), 0], abs=1e-6)
    twice = FlowMatchEulerDiscreteScheduler(shift=3.0)
    twice.set_timesteps(10)
    golden = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0]
    assert twice.sigmas.tolist() == pytest.approx(golden, abs=1e-4)
    single = grids.shifted(backbone.process, 10, 3.0)
    assert float((single - twice.sigmas).abs().max()) > 0.1


def test_ddim_and_euler_are_one_on_a_straight_line(backbone):
    """x' = x + (t' − t)(ε̂ − x̂0) = (1 − t')x̂0 + t'ε̂ (arXiv 2209.03003)."""
    times = grids.uniform(backbone.process, 5)
    torch.testing.assert_close(
        ours(backbone, 1.0, times, "ddim"), ours(backbone, 1.0, times), rtol=0, atol=1e-5
    )


def test_a_prompt_is_read_as_the_pipeline_reads_it(folder, backbone):
    condition = backbone.encode(PROMPTS)
    states, empty, pooled, free = plain(folder).encode_prompt(
        PROMPTS, None, None, max_sequence_length=3
    )
    assert condition.tokens.shape == (3, 10 + 3 + 1, 24)
    torch.testing.assert_close(condition.tokens[:, :-1], states)
    torch.testing.assert_close(condition.tokens[:, -1, :20], pooled)
    assert not condition.tokens[:, -1, 20:].any()
    assert not condition.tokens[:, :10, 20:].any()  # two CLIPs of 12 and 8 do not fill 24
    torch.testing.assert_close(condition.null[:-1], empty[0])
    torch.testing.assert_close(condition.null[-1, :20], free[0])
    alone = backbone.encode(PROMPTS[:1]).tokens
    torch.testing.assert_close(alone, condition.tokens[:1], rtol=0, atol=1e-6)


def test_a_pooled_state_wider_than_a_token_takes_two_rows(tmp_path):
    saved(tmp_path, pipeline(projection=16), 0)
    found, pipe = stable_diffusion_3.load(str(tmp_path)), plain(tmp_path)
    assert found.encode(PROMPTS).tokens.shape == (3, 10 + 2, 24)
    times = scheduled(pipe, 3)
    torch.testing.assert_close(ours(found, 2.0, times), theirs(pipe, 2.0, 3, 0), rtol=0, atol=1e-4)


def test_what_stands_in_t5s_place_survives_diffusers(folder, tmp_path, caplog):
    """Plain diffusers loads and saves the folder without losing the note, and says nothing."""
    plain(folder).save_pretrained(tmp_path)
    assert "attributes" not in caplog.text
    again = stable_diffusion_3.load(str(tmp_path))
    assert again.encode(PROMPTS).tokens.shape == (3, 10 + 3 + 1, 24)


# --------------------------------------------------------------------------------- the network


def test_what_it_is(backbone):
    assert backbone.shape == (4, 4, 4)
    assert backbone.process == RectifiedFlow()
    assert backbone.prediction.name == "velocity"
    assert not any(p.requires_grad for p in backbone.pipeline.transformer.parameters())
    assert not any(p.requires_grad for p in backbone.pipeline.vae.parameters())


def test_the_label_is_a_thousand_times_the_time(backbone):
    seen = []
    hook = backbone.network.register_forward_pre_hook(
        lambda module, given, named: seen.append(named["timestep"]), with_kwargs=True
    )
    with torch.no_grad():
        backbone.predict(noise(2), torch.tensor([0.25, 1.0]), backbone.encode(PROMPTS[:2]).tokens)
    hook.remove()
    assert seen[0].tolist() == [250, 1000]


@pytest.mark.parametrize("offset", [None, 0.06])
def test_pictures_and_back(tmp_path, offset):
    """decode(z) is the VAE at z/scaling + shift, and embed the inverse of that line."""
    found = stable_diffusion_3.load(str(saved(tmp_path, pipeline(offset=offset), 0)))
    vae, z = found.pipeline.vae, noise(2)
    with torch.no_grad():
        pixels = vae.decode(z / 1.5 + (offset or 0)).sample
        images = found.decode(z)
        codes = vae.encode(images * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(images, (pixels / 2 + 0.5).clamp(0, 1))
    assert images.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found.embed(images), (codes - (offset or 0)) * 1.5)
    z.requires_grad_(True)
    found.decode(z).sum().backward()
    assert float(z.grad.abs().sum()) > 0


def test_features_for_a_critic(backbone):
    assert isinstance(backbone, WithFeatures)
    tokens, t = backbone.encode(PROMPTS).tokens, torch.full((3,), 0.5)
    x = noise().requires_grad_(True)
    output, features = backbone.predict_with_features(x, t, tokens)
    assert torch.equal(output, backbone.predict(x, t, tokens))
    assert features.shape == (3, backbone.feature_size)
    assert features.dtype == torch.float32
    (slope,) = torch.autograd.grad(features.sum(), x)
    assert float(slope.abs().sum()) > 0
    # They are what the network reads its answer from: normalised and projected, the mean token.
    seen = []
    last = backbone.network.transformer_blocks[-1]
    hook = last.register_forward_hook(lambda module, given, found: seen.append(found[1]))
    backbone.predict(x, t, tokens)
    hook.remove()
    torch.testing.assert_close(features, seen[0].mean(1))


def test_half_precision_acts_and_judges_alike(folder):
    half = stable_diffusion_3.load(str(folder), dtype=torch.bfloat16)
    add_adapter(half.network, 2)
    policy = Policy(half, GDDIM(1.0), 2.0)
    condition = half.encode(PROMPTS)
    times, generator = grids.uniform(half.process, 3), torch.Generator().manual_seed(0)
    path = rollout(policy, condition, times, generator, noise())
    assert path.states.dtype == torch.float32
    assert torch.isfinite(path.log_probs).all()
    for k in range(2):
        t, t_next = times[k].expand(3), times[k + 1].expand(3)
        law = policy.transition(path.states[k], t, t_next, condition)
        assert torch.equal(law.log_prob(path.states[k + 1]), path.log_probs[k])
    whole = ours(stable_diffusion_3.load(str(folder)), 2.0, times)
    assert float((ours(half, 2.0, times) - whole).abs().max()) < 0.1
    assert half.decode(path.final).dtype == torch.float32
    assert half.embed(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_under_another_process_it_draws_the_same(backbone):
    """DDIM under VP is DDIM under rectified flow at the same σ/α, in x/α (arXiv 2206.00364)."""
    flow, moved, x = backbone.process, recycle(backbone, VP()), noise()
    times = grids.karras(VP(), 6)
    tau = time_of_ratio(flow, noise_ratio(VP(), times.double())).float()
    condition = backbone.encode(PROMPTS)
    field = Policy(moved, Renoise(Still()), 2.0).field(condition)
    own = Policy(backbone, Renoise(Still()), 2.0).field(condition)
    with torch.no_grad():
        found = solvers.ddim(VP(), field, VP().alpha(times[0]) * x, times)
        same = solvers.ddim(flow, own, flow.alpha(tau[0]) * x, tau)
    found, same = found / VP().alpha(times[-1]), same / flow.alpha(tau[-1])
    torch.testing.assert_close(found, same, rtol=0, atol=1e-3 * float(same.std()))


# ------------------------------------------------------------------------ from the noise itself


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.5])
def test_a_step_from_pure_noise_is_finite(adapted, eta):
    """At t = 1 there is no signal, ρ = ∞; the step is then α'x̂0 + σ'ξ."""
    policy = Policy(adapted, GDDIM(eta), 2.0)
    condition, x = adapted.encode(PROMPTS), noise()
    t, t_next = torch.ones(3), torch.full((3,), 0.8)
    law = policy.transition(x, t, t_next, condition)
    data = policy.estimate(x, t, condition).data
    torch.testing.assert_close(law.mean, 0.2 * data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(law.std, torch.full_like(law.std, 0.8))
    law.log_prob(noise(seed=3)).sum().backward()
    slopes = [p.grad for p in policy.parameters() if p.grad is not None]
    assert slopes
    assert all(bool(torch.isfinite(slope).all()) for slope in slopes)
    assert any(bool(slope.any()) for slope in slopes)
    adapted.network.zero_grad()


def test_a_path_from_pure_noise_to_data(backbone):
    policy = Policy(backbone, GDDIM(1.0))
    condition = backbone.encode(PROMPTS)
    x = prior(policy, 3, torch.Generator().manual_seed(0))
    path = rollout(
        policy,
        condition,
        grids.uniform(backbone.process, 4),
        torch.Generator().manual_seed(1),
        x,
        features=True,
    )
    assert path.noisy.tolist() == [True, True, True, False]
    for field in (path.states, path.log_probs, path.kl_weights, path.etas, path.features):
        assert torch.isfinite(field).all()


# ------------------------------------------------------------------------------- fine-tuning


class Watching:
    """A watcher that stops the run after the update `until`, if told to."""

    def __init__(self, until: int | None = None) -> None:
        self.until, self.lines = until, []

    def stage(self, text: str) -> None: ...

    def line(self, numbers: dict[str, Any]) -> None:
        self.lines.append(numbers)
        if numbers.get("update") == self.until:
            raise KeyboardInterrupt


def launch(run: config.Run, folder: Path, until: int | None = None) -> list[dict[str, Any]]:
    from scoretune.training.build import launch, ready

    watching = Watching(until)
    ready(run)
    run_folder.record(run, folder, threads=1)
    launch(run, folder, watching)
    return watching.lines


@pytest.fixture
def tuned(folder, tiny, tmp_path):
    """A configuration of two GRPO updates on the tiny model."""
    asked = tmp_path / "prompts.txt"
    asked.write_text("\n".join(PROMPTS))

    def make(*changes: str) -> config.Run:
        given = [f"model.source={folder}", f"prompts={asked}", "reward=brightness", "model.rank=2"]
        return overrides.changed(recipes.named("grpo"), [*tiny, *given, *changes])

    return make


def test_a_lora_trains(tuned, tmp_path):
    lines = launch(tuned("model.guidance=2"), tmp_path / "run")
    assert [line["update"] for line in lines] == [1, 2]
    policy = run_folder.load(tmp_path / "run")
    assert isinstance(policy.backbone, StableDiffusion3)
    learned = adapter_state(policy.backbone.network)
    assert {name.split(".lora")[0].split("attn.")[-1] for name in learned} > {"to_q", "add_q_proj"}
    assert any(bool(w.any()) for name, w in learned.items() if "lora_B" in name)
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").exists()


def test_every_weight_trains(tuned, folder, tmp_path):
    changes = ["model.rank=0", "optimiser.learning_rate=1e-3", "objective.kl_weight=0"]
    launch(tuned(*changes), tmp_path / "run")
    learned = run_folder.load(tmp_path / "run").backbone.network.state_dict()
    before = stable_diffusion_3.load(str(folder)).network.state_dict()
    moved = [name for name, w in before.items() if not torch.equal(w, learned[name])]
    assert "pos_embed.proj.weight" in moved
    assert len(moved) > len(before) / 2


def test_named_targets_are_kept(tuned):
    policy = build.build_policy(tuned('model.targets=["to_q"]'), CPU)
    assert all(".to_q." in name for name in adapter_state(policy.backbone.network))


def test_a_stopped_run_goes_on_bit_for_bit(tuned, tmp_path):
    launch(tuned("updates=3"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        launch(tuned("updates=3"), tmp_path / "stopped", until=2)
    launch(tuned("updates=3"), tmp_path / "stopped")
    name = Path("lora") / "pytorch_lora_weights.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_same_pictures_in_plain_diffusers(folder, tmp_path, guidance):
    found = stable_diffusion_3.load(str(folder))
    add_adapter(found.network, 2, StableDiffusion3.targets)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in adapter_state(found.network).items():
        if "lora_B" in name:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    policy = Policy(found, GDDIM(1.0))
    export.lora(policy, tmp_path)
    pipe = plain(folder)
    pipe.load_lora_weights(tmp_path)
    times = scheduled(pipe, 5)
    pictures = theirs(pipe, guidance, 5, 3, "pt")
    with torch.no_grad():
        mine = found.decode(ours(found, guidance, times))
        with policy.reference():
            bare = found.decode(ours(found, guidance, times))
    torch.testing.assert_close(mine, pictures, rtol=0, atol=1e-4)
    assert float((bare - pictures).abs().max()) > 0.01  # the adapter is what made them so


def test_a_lora_under_another_process_has_its_own_names(folder, tmp_path):
    found = stable_diffusion_3.load(str(folder))
    add_adapter(found.network, 2)
    text = export.lora(Policy(recycle(found, VP()), GDDIM(1.0)), tmp_path).read_bytes()
    assert b"transformer.transformer_blocks" in text
    assert b"unet." not in text


@pytest.mark.parametrize("law", ["ratio, unchanged", "infinite log-probabilities", "same seed"])
def test_the_laws_of_any_model_hold(backbone, law):
    (asked,) = [each for each in laws_of(Policy(backbone, GDDIM(1.0))) if law in each.name]
    with torch.no_grad():
        assert asked.measured(CPU) == pytest.approx(asked.expected, abs=asked.tolerance)


# ---------------------------------------------------------------------------------- families


def built(source: Path | str, **rest: Any) -> Policy:
    model = config.Model(source=str(source), rank=0, **rest)
    run = config.Run(recipe="none", objective=config.PolicyGradient(), model=model)
    return build.build_policy(run, CPU)


def test_the_family_is_chosen_by_the_class(folder):
    assert isinstance(built(folder).backbone, StableDiffusion3)
    assert isinstance(built("scenes").backbone, stable_diffusion.StableDiffusion)


def test_a_wrong_family_says_which_there_are(folder, tmp_path):
    pipe = pipeline()
    saved(tmp_path, pipe, 0)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "SanaPipeline"}))
    with pytest.raises(UserError) as caught:
        built(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"'{tmp_path}' holds a SanaPipeline, which is no family of this version")
    assert all(name in said for name in catalog.FAMILIES)
    with pytest.raises(UserError, match="holds a StableDiffusion3Pipeline, not a StableDiffusionP"):
        stable_diffusion.load(str(folder))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model_index.json").unlink(), "is no diffusers pipeline"),
        (lambda f: (f / "model_index.json").write_text("{"), "is no diffusers pipeline"),
        (
            lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").rename(
                f / "transformer" / "diffusion_pytorch_model.bin"
            ),
            "is a pickle, which can run code when read",
        ),
        (lambda f: (f / "vae" / "config.json").unlink(), "cannot load the model"),
        (
            lambda f: (f / "text_encoder_2" / "model.safetensors").write_bytes(b"short"),
            "cannot load the model .* StableDiffusion3Pipeline with safetensors weights",
        ),
    ],
)
def test_bad_folders(tmp_path, spoil, said):
    spoil(saved(tmp_path, pipeline(), 0))
    with pytest.raises(UserError, match=said) as caught:
        built(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="does not exist: check the path"):
        built(tmp_path / "nowhere")


def test_a_hub_id_is_read_at_its_revision(folder, tmp_path, monkeypatch):
    """The hub's cache, laid out by hand: nothing is downloaded, and `main` is another commit."""
    home, commit = tmp_path / "models--me--tiny", "a" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("b" * 40)
    (home / "refs" / "tried").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = built("me/tiny", revision="tried").backbone
    assert isinstance(found, StableDiffusion3)
    for revision in (None, "nothing"):
        with pytest.raises(UserError, match="cannot load the model 'me/tiny'") as caught:
            built("me/tiny", revision=revision)
        assert "\n" not in str(caught.value)


def test_a_condition_is_taken_apart_as_any_other(backbone):
    condition = backbone.encode(PROMPTS)
    some = condition.take(torch.tensor([2, 0]))
    assert isinstance(some, Condition)
    t = torch.full((2,), 0.7)
    with torch.no_grad():
        whole = backbone.predict(noise(), torch.full((3,), 0.7), condition.tokens)
        part = backbone.predict(noise()[[2, 0]], t, some.tokens)
    torch.testing.assert_close(part, whole[[2, 0]], rtol=0, atol=1e-5)
