"""Grids: ends, spacing, diffusers' times, and refusals."""

import math

import pytest
import torch

from scoretune.diffusion.grids import (
    default_end,
    diffusers_times,
    karras,
    shifted,
    time_of_ratio,
    uniform,
)
from scoretune.diffusion.processes import VP, Process, RectifiedFlow, Tabulated, noise_ratio

F64 = torch.float64
GRIDS = {
    "uniform": lambda process, n, **rest: uniform(process, n, **rest),
    "karras": lambda process, n, **rest: karras(process, n, 7.0, **rest),
    "shifted": lambda process, n, **rest: shifted(process, n, 3.0, **rest),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_fall_from_horizon_to_end(process: Process, grid, case):
    if grid == "karras" and isinstance(process, RectifiedFlow):
        pytest.skip("no finite noise ratio")
    for n in (1, 2, 13, 100):
        with case(n):
            times = GRIDS[grid](process, n, dtype=F64)
            assert times.shape == (n + 1,)
            assert (times.diff() < 0).all()
            assert float(times[0]) == process.horizon
            assert float(times[-1]) == pytest.approx(default_end(process), abs=1e-15)
            assert GRIDS[grid](process, n).dtype == torch.float32
            assert float(GRIDS[grid](process, n, t_end=0.0)[-1]) == 0


def test_default_ends():
    assert default_end(Tabulated.scaled_linear()) == 1e-3
    assert default_end(VP()) == 1e-3
    assert default_end(RectifiedFlow()) == 0


def test_karras_is_uniform_in_the_root_of_the_noise_ratio():
    roots = noise_ratio(VP(), karras(VP(), 12, 5.0, dtype=F64)) ** 0.2
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(12))


def test_time_of_ratio_inverts(process: Process):
    t = process.horizon * torch.tensor([0.001, 0.3, 0.99], dtype=F64)
    torch.testing.assert_close(time_of_ratio(process, noise_ratio(process, t)), t)


def test_shift_multiplies_the_noise_ratio_of_rectified_flow():
    plain, moved = uniform(RectifiedFlow(), 10, dtype=F64), shifted(RectifiedFlow(), 10, 3.0)
    ratio = noise_ratio(RectifiedFlow(), plain)[1:-1] * 3
    torch.testing.assert_close(moved[1:-1], (ratio / (1 + ratio)).float())
    assert torch.equal(shifted(RectifiedFlow(), 10, 1.0, dtype=F64), plain)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("n", [7, 10, 30, 50])
def test_labels_are_those_of_diffusers(spacing, offset, to_one, n):
    diffusers = pytest.importorskip("diffusers")
    process = Tabulated.linear()
    theirs = diffusers.DDIMScheduler(
        timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one
    )
    theirs.set_timesteps(n)
    times = diffusers_times(
        process, n, spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one
    )
    labels = process.label(times).round().long()
    ends_at_first_node = int(theirs.timesteps[-1]) == 0
    dropped = ends_at_first_node and not to_one
    assert labels[:-1].tolist() == theirs.timesteps.tolist()[: n - dropped]
    assert labels[-1] == (-1 if to_one else 0)
    assert (times.diff() < 0).all()


def test_leading_grid_of_stable_diffusion(sd15):
    times = diffusers_times(sd15, 50, dtype=F64)
    labels = sd15.label(times).round().tolist()
    assert labels[:2] == [981, 961]
    assert labels[-2:] == [1, 0]
    assert float(noise_ratio(sd15, times[:1])) == pytest.approx(13.12, abs=5e-3)
    twenty = diffusers_times(sd15, 20, dtype=F64)
    assert float(noise_ratio(sd15, twenty[:1])) == pytest.approx(11.03, abs=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform(VP(), 0), "a grid needs at least 1 step, got 0"),
        (lambda: uniform(VP(), 5, 1.0), r"t_end must lie in \[0, 1.0\), got 1.0"),
        (lambda: uniform(VP(), 5, math.nan), "t_end must lie in"),
        (lambda: karras(VP(), 5, math.inf), "karras rho must be finite and > 0, got inf"),
        (lambda: karras(RectifiedFlow(), 5), "karras needs a finite σ/α .* use shifted"),
        (lambda: shifted(VP(), 5, 0.0), "shift must be finite and > 0, got 0.0"),
        (lambda: _diffusers(0), "need between 1 and 1000 steps for a table of 1000, got 0"),
        (lambda: _diffusers(1001), "need between 1 and 1000 steps"),
        (lambda: _diffusers(1000, steps_offset=1), "leave the table of 1000 entries"),
        (lambda: _diffusers(5, spacing="odd"), "unknown spacing 'odd': choose leading"),
        (lambda: _diffusers(1, steps_offset=0), "is no step: use more"),
    ],
)
def test_errors_name_the_thing_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def _diffusers(n, **rest):
    return diffusers_times(Tabulated.scaled_linear(), n, **rest)
