"""The experiments on processes: pictures of a user's own folder, and numbers that are known."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoretune.commands.reproduce import (
    contractive_mixture,
    contractive_recycling,
    tutorial_consistency,
    tutorial_matching,
    tutorial_samplers,
)
from scoretune.commands.reproduce.contractive_images import (
    BASELINE,
    COMMON,
    PROCESSES,
    cells,
    samples,
)
from scoretune.commands.reproduce.denoiser import Denoiser, Perceptron, fitted
from scoretune.commands.reproduce.image_base import QUICK, network_for
from scoretune.commands.reproduce.image_data import kinds_in, pictures_of
from scoretune.commands.reproduce.swiss_roll import CENTRE, roll
from scoretune.core.errors import UserError
from scoretune.diffusion.processes import EDM, VE, VP, ContractiveSubVP


def idx(path: Path, array: np.ndarray) -> None:
    """A gzipped idx file of bytes."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def mnist(folder: Path, n: int = 6) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", np.arange(n))
    return images


def test_mnist_is_read_centred_and_kept(tmp_path):
    images = mnist(tmp_path)
    assert kinds_in(str(tmp_path)) == ["digits", "mnist"]
    (tmp_path / "kept").mkdir()
    found = pictures_of("mnist", str(tmp_path), tmp_path / "kept")
    assert found.centred.shape == (6, 1, 28, 28)
    assert float(found.centred.mean(0).abs().max()) < 1e-6
    shown = (found.shown(found.centred) + 1) * 127.5
    original = torch.from_numpy(images[found.labels.numpy()].astype(np.float32))
    assert torch.allclose(shown[:, 0], original, atol=1e-3)  # with its own label, in other order
    for file in (tmp_path / "mnist").iterdir():
        file.unlink()
    assert torch.equal(pictures_of("mnist", str(tmp_path), tmp_path / "kept").labels, found.labels)


def test_cifar_in_its_binary_version(tmp_path):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (4, 3073), dtype=np.uint8)
    records[:, 0] = [3, 1, 2, 0]
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (folder / name).write_bytes(records.tobytes())
    found = pictures_of("cifar10", str(tmp_path), tmp_path)
    row = {int(r[0]): r[1:].reshape(3, 32, 32) for r in records}
    shown = (found.shown(found.centred) + 1) * 127.5
    for image, label in zip(shown, found.labels, strict=True):
        assert torch.allclose(
            image, torch.from_numpy(row[int(label)].astype(np.float32)), atol=1e-3
        )


def test_jpegs_with_one_header(tmp_path):
    files = []
    for shade in (10, 120, 250, 60):
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), (shade, shade, shade)).save(buffer, "JPEG", quality=75)
        files.append(buffer.getvalue())
    start = files[0].index(b"\xff\xda")  # everything before the scan is the same
    assert all(file[:start] == files[0][:start] for file in files)
    scans = [np.frombuffer(file[start:], np.uint8) for file in files]
    (tmp_path / "cifar10_jpeg").mkdir()
    np.savez(
        tmp_path / "cifar10_jpeg" / "cifar10_jpeg.npz",
        header=np.frombuffer(files[0][:start], np.uint8),
        scans=np.concatenate(scans),
        offsets=np.cumsum([0, *map(len, scans)]),
        label=np.arange(4, dtype=np.uint8),
        is_test=np.array([0, 0, 0, 1], np.uint8),
    )
    found = pictures_of("cifar10", str(tmp_path), tmp_path)
    shades = {0: 10, 1: 120, 2: 250, 3: 60}
    for centred, labels in (
        (found.centred, found.labels),
        (found.held_out, found.held_out_labels),
    ):
        shown = (centred + found.mean + 1) * 127.5
        for image, label in zip(shown, labels, strict=True):
            assert torch.allclose(image, torch.tensor(float(shades[int(label)])), atol=3)


@pytest.mark.parametrize("broken", ["nothing", "torn"])
def test_a_wrong_folder_is_one_line(tmp_path, broken):
    if broken == "nothing":
        with pytest.raises(UserError, match="holds no pictures"):
            cells(1, True, data=str(tmp_path))
        return
    mnist(tmp_path)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"torn")
    with pytest.raises(UserError, match="t10k-labels"):
        pictures_of("mnist", str(tmp_path), tmp_path)


def test_every_kind_seed_and_process_has_a_cell(tmp_path):
    mnist(tmp_path)
    names = [cell.name for cell in cells(2, True, data=str(tmp_path))]
    assert len(names) == len(set(names)) == 2 * (1 + 2 * len(PROCESSES))
    assert next(iter(cells(1, True))).name == "digits-real"
    assert abs(COMMON - 7.27255) < 1e-5


# ---------------------------------------------------------------------------- the denoiser


def test_a_denoiser_says_the_same_under_every_process():
    torch.manual_seed(0)
    model = Denoiser(Perceptron(), 0.7)
    base, ratio = torch.randn(5, 2, dtype=torch.float64), 3.0
    told = []
    for process in (VP(), VE(), EDM(), ContractiveSubVP()):
        t = (
            process.time(torch.full((5,), ratio, dtype=torch.float64))
            if not isinstance(process, EDM)
            else torch.full((5,), ratio, dtype=torch.float64)
        )
        x = process.alpha(t)[:, None] * base
        said = model.under(process)(x.float(), t.float())
        told.append(said.data)
        mixed = process.alpha(t)[:, None] * said.data + process.sigma(t)[:, None] * said.noise
        assert torch.allclose(mixed.float(), x.float(), rtol=1e-3, atol=1e-4)
    for other in told[1:]:
        assert torch.allclose(told[0], other, atol=1e-3)


@pytest.mark.slow
def test_training_finds_a_gaussian_denoiser():
    """The best denoiser of N(0, s²) is s²/(s² + ρ²) x̄, whichever process trained it."""
    torch.manual_seed(0)
    data = 0.5 * torch.randn(5000, 1)
    for process in (VP(), ContractiveSubVP()):
        model = fitted(Perceptron(1, 32), data, process, updates=300, batch=128, rate=1e-2)
        for ratio in (0.3, 1.0, 3.0):
            x = torch.tensor([[1.0], [-1.0]]) * (0.25 + ratio**2) ** 0.5
            with torch.no_grad():
                found = model(x, torch.full((2,), ratio))
            wanted = 0.25 / (0.25 + ratio**2) * x
            assert torch.allclose(found, wanted, atol=0.08), (process, ratio)


def test_the_roll_is_centred():
    assert float((roll(50_000, 3) + torch.tensor(CENTRE)).mean(0).abs().max()) < 0.5
    assert float(roll(50_000, 3).mean(0).abs().max()) < 0.03


# ---------------------------------------------------------------------------- golden numbers


def test_samplers_golden():
    """W2 on N(1, ¼) under VP at 10 and 80 steps: to the four digits that are known."""
    for grid in ("uniform", "karras"):
        found = tutorial_samplers.distances(grid, [10, 80])
        for name, (ten, eighty, _) in tutorial_samplers.EXPECTED[grid].items():
            assert found[name] == pytest.approx([ten, eighty], rel=4e-4), (grid, name)


def test_least_losses_and_spreads_golden():
    found = tutorial_matching.floors()
    # By scipy's quad on ∫ α²s²/v dt: the least denoising loss with weight σ².
    assert list(found["least"].values()) == pytest.approx([0.173307, 0.172488, 0.164999], abs=1e-6)
    for name, expected in tutorial_matching.SPREADS.items():
        assert found["spread"][name] == pytest.approx(expected, rel=0.035), name


def test_losses_agree_in_the_mean():
    found = tutorial_matching.identities(40_000)
    means = {name: mean for name, (mean, _) in found.items()}
    for name, mean in means.items():  # Σsᵢ²/1.69 − 20/1.3, with a mean of 12.5 for the sum
        noise = (found[name][1] / 40_000) ** 0.5 + (12.5 / 40_000) ** 0.5
        assert mean == pytest.approx(12.5 / 1.69 - 20 / 1.3, abs=4 * noise), name
    assert found["sliced"][1] > 2 * found["sliced, reduced, Gaussian"][1]
    assert found["sliced, reduced, Rademacher"][1] == pytest.approx(found["implicit"][1])


def test_consistency_golden():
    found = tutorial_consistency.exact()
    for points, value in tutorial_consistency.RESIDUALS.items():
        assert found["residuals"][str(points)] == pytest.approx(value, rel=2e-3)
    assert found["one step"] == pytest.approx([0.695625, 0.499994], abs=1e-6)
    assert list(found["pairs"].values()) == pytest.approx(
        list(tutorial_consistency.PAIRS.values()), abs=2e-4
    )


def test_recycling_is_exact_only_with_the_factor():
    found = contractive_recycling.theorem()
    for t, tau in contractive_recycling.EXPECTED.items():
        assert found["tau"][f"{t:g}"] == pytest.approx(tau, abs=1e-6)
    assert found["density"] < 1e-10
    assert found["score"] < 1e-10
    assert found["without"] > 0.1


def test_two_modes_and_a_wrong_score():
    """The order of the processes and what noise does to each, with few samples."""
    found = {
        name: contractive_mixture.sweep(name, "score", 0, n=2000, steps=60)["distances"]
        for name in ("VP", "VE", "CVP", "CsubVP")
    }
    assert found["CVP"][1] < found["VP"][1] < min(found["VE"][1], found["CsubVP"][1])
    for name, distances in found.items():
        rising = distances[0] < distances[1] < distances[-1]
        assert rising if name == "CVP" else distances[0] > distances[1] > distances[-1], name


@pytest.mark.parametrize("process", list(PROCESSES))
def test_the_common_range_is_one_sampler_for_all(process, tmp_path):
    """From σ/α = 7.27 an ODE sampler in σ/α does not know the process: nor may the code."""
    budget, pictures = QUICK, pictures_of("digits", None, tmp_path)
    torch.manual_seed(0)
    model = Denoiser(network_for("digits", (1, 8, 8)), 0.5)
    chosen = [PROCESSES[name] for name in (process, BASELINE)]
    common = [samples(model, p, "ODE, common range", pictures, budget, 0) for p in chosen]
    assert torch.equal(*common)
    own = samples(model, PROCESSES[BASELINE], "ODE", pictures, budget, 0)
    assert torch.allclose(own, common[1], atol=1e-3)
