"""Training from nothing: small enough to run here, stopped and resumed bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from scoretune.scenes.lessons import Recipe, ramp
from scoretune.scenes.pretrain import pretrain

TINY = Recipe(
    batch=4,
    autoencoder_steps=2,
    reading_steps=2,
    grounding_steps=2,
    denoiser_steps=4,
    pictures=256,
    save_every=1,
)


class Stopped(Exception):
    pass


def silent(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
    pass


def weights(model: Path) -> dict[str, str]:
    files = sorted(model.rglob("*.safetensors"))
    return {str(f.relative_to(model)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_stopped_pretraining_goes_on_bit_for_bit(tmp_path):
    undisturbed = weights(pretrain(tmp_path / "whole", TINY, silent))

    def stop(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if (stage, done) in stops:
            stops.remove((stage, done))
            raise Stopped

    stops = [("autoencoder", 1), ("judge", 2), ("denoiser", 3)]
    for _ in range(3):
        with pytest.raises(Stopped):
            pretrain(tmp_path / "stopped", TINY, stop)
    assert weights(pretrain(tmp_path / "stopped", TINY, stop)) == undisturbed
    assert len(undisturbed) == 5  # autoencoder, UNet, text encoder, reader, judge


def test_captions_are_clean_first_and_noisy_at_the_end():
    assert [ramp(done, 0.5) for done in (0.0, 0.5)] == [0.0, 0.0]
    assert ramp(0.55, 0.5) == pytest.approx(0.5)
    assert [ramp(done, 0.5) for done in (0.65, 1.0)] == [1.0, 1.0]
