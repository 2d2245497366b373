"""What everyone stands on, and what knows nothing of diffusion."""
