"""Diffusion in continuous time: processes, estimates, kernels, solvers and grids.

Data sit at time 0 and noise at `process.horizon`; sampling runs with t decreasing. Per-sample
scalars (times, labels) are tensors of shape [B], states are [B, *S].

| symbol | name here |
|---|---|
| α(t), σ(t) | `process.alpha(t)`, `process.sigma(t)` |
| f = α'/α, g² | `drift_rate`, `diffusion_sq` |
| ρ = σ/α | `noise_ratio` |
| λ = ln(α/σ) | `half_log_snr` |
| x̂₀, ε̂ | `Estimate.data`, `Estimate.noise` |
| η (0 the ODE, 1 the reverse SDE) | a *scale*, e.g. `Constant(eta)` |
| c, the standard deviation of a step | `Transition.std` |
"""
