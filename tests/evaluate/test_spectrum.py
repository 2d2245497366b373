"""Periodic artefacts: a known pattern is found at its known height, and nothing where is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoretune.evaluate.guard.spectrum import LEAST, grid_peaks

EVERY = [(down, across) for down in range(5) for across in range(5) if down or across]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(count: int, side: int, seed: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=generator(seed))


def pattern(down: float, across: float, rows: int, columns: int) -> Tensor:
    """cos 2π(down·i + across·j), [rows, columns]."""
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None]
    return torch.cos(2 * torch.pi * (down * i + across * j))


def natural(count: int, side: int, seed: int, exponent: float = 1.0) -> Tensor:
    """A window of a random field with amplitude 1/f^exponent: its borders do not meet."""
    whole = 2 * side
    frequency = torch.hypot(torch.fft.fftfreq(whole)[:, None], torch.fft.rfftfreq(whole)[None])
    frequency[0, 0] = torch.inf
    noise = torch.fft.rfft2(white(count, whole, seed)) / frequency**exponent
    return torch.fft.irfft2(noise, s=(whole, whole))[..., :side, :side]


def heights(images: Tensor) -> dict[tuple[float, float], float]:
    found = grid_peaks(images)
    assert found is not None
    places = [tuple(place) for place in found.frequencies.tolist()]
    return dict(zip(places, found.heights.mean(0).tolist(), strict=True))


# ------------------------------------------------------------------------------ known answers


@pytest.mark.parametrize("amplitude", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_a_checkerboard_of_known_amplitude_has_a_known_height(amplitude, seed):
    """1 + a²HW/s² at (1/2, 1/2) in white noise of deviation s: 11.24 for a = s/10 on 32 x 32."""
    deviation, side = 0.2, 32
    images = deviation * white(200, side, seed, channels=1)
    found = heights(images + amplitude * pattern(0.5, 0.5, side, side))
    expected = 1 + (amplitude / deviation) ** 2 * side**2
    assert found[0.5, 0.5] == pytest.approx(expected, rel=0.2)
    assert max(v for place, v in found.items() if place != (0.5, 0.5)) < 1.4


@pytest.mark.parametrize(("down", "across"), EVERY)
def test_every_grid_frequency_is_found_where_it_is(down, across):
    """1 + a²HW/cs²: cos leaves half its amplitude at f and half at −f, which are one and the same
    where both are 0 or 1/2; and two diagonals are averaged, which are one where either is."""
    side, amplitude = 32, 0.4
    images = white(200, side, 1, channels=1) + amplitude * pattern(down / 8, across / 8, side, side)
    found = heights(images)
    place = max(found, key=lambda place: found[place])
    assert place == (down / 8, across / 8)
    own_mirrors = sum(frequency in (0, 4) for frequency in (down, across))
    divisor = {2: 1, 1: 4, 0: 8}[own_mirrors]
    assert found[place] == pytest.approx(1 + amplitude**2 * side**2 / divisor, rel=0.2)


# ------------------------------------------------------------------------------- nothing there


@pytest.mark.parametrize("side", [32, 36, 64])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_on_white_noise(side, seed):
    found = heights(white(100, side, seed))
    assert max(found.values()) < 1.3
    assert sum(found.values()) / len(found) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("seed", range(2))
def test_nothing_on_the_spectra_of_nature(exponent, side, seed):
    """Amplitudes 1/f and steeper or flatter, with borders that leave a cross on the axes."""
    assert max(heights(natural(60, side, seed, exponent)).values()) < 1.5


@pytest.mark.parametrize("seed", range(3))
def test_a_faint_grid_on_natural_pictures_is_found(seed):
    """A 64th of the contrast, which a 1/f spectrum drowns at low frequencies but not at 1/2."""
    images = natural(100, 32, seed)
    grid = images.std() / 64 * 2 * pattern(0.5, 0.5, 32, 32)
    assert heights(images)[0.5, 0.5] < 1.5
    assert heights(images + grid)[0.5, 0.5] > 3


# ---------------------------------------------------------------------------------------- laws


def patterned(seed: int = 0) -> Tensor:
    return natural(20, 32, seed) + 0.1 * pattern(0.25, 0.5, 32, 32)


def peaks(images: Tensor) -> Tensor:
    found = grid_peaks(images)
    assert found is not None
    return found.heights


def test_contrast_and_brightness_of_each_picture_do_not_matter():
    images = patterned()
    contrast = torch.linspace(0.1, 5, 20)[:, None, None, None]
    brightness = torch.linspace(-2, 3, 20)[:, None, None, None]
    changed = peaks(contrast * images + brightness)
    torch.testing.assert_close(changed, peaks(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shift", [(1, 0), (0, 3), (5, 7)])
def test_shifted_pictures_have_the_same_peaks(shift):
    images = patterned()
    moved = images.roll(shift, (2, 3))
    torch.testing.assert_close(peaks(moved), peaks(images), rtol=1e-4, atol=1e-5)


def test_mirrored_and_turned_pictures():
    images = patterned()
    torch.testing.assert_close(peaks(images.flip(3)), peaks(images), rtol=1e-4, atol=1e-5)
    found, turned = heights(images), heights(images.transpose(2, 3))
    for down, across in found:
        assert turned[across, down] == pytest.approx(found[down, across], rel=1e-4)


def test_a_pattern_in_one_picture_shows_in_that_one_alone():
    images = white(50, 32, 0)
    images[7] += pattern(0.5, 0.5, 32, 32)
    found = grid_peaks(images)
    assert found is not None
    corner = found.heights[:, found.frequencies.tolist().index([0.5, 0.5])]
    assert int(corner.argmax()) == 7
    assert corner[7] > 50 * corner[:7].max()


def test_flat_pictures_have_no_peaks():
    flat = torch.full((3, 3, 32, 32), 0.5)
    assert float(peaks(flat).abs().max()) == 0
    board = 0.5 + 0.1 * pattern(0.5, 0.5, 32, 32).expand(3, 3, 32, 32)
    assert 1e3 < float(peaks(board).max()) < torch.inf  # nothing else to compare with


def test_small_pictures_and_odd_sizes():
    assert grid_peaks(torch.rand(4, 3, LEAST - 1, 64)) is None
    odd = white(200, 45, 0)[..., :39] + 0.3 * pattern(0.5, 0.0, 45, 39)  # 40 x 32 are looked at
    found = heights(odd)
    assert max(found, key=lambda place: found[place]) == (0.5, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision(dtype):
    images = patterned()
    assert peaks(images.to(dtype)).dtype == torch.float32
    highest = float(peaks(images).max())
    assert float(peaks(images.to(dtype)).max()) == pytest.approx(highest, rel=0.1)
