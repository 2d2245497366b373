"""scoretune: fine-tune diffusion and flow models from rewards, in continuous time."""

__version__ = "0.1.0"
