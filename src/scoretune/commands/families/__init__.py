"""scoretune families: every family of models against diffusers' own pipeline."""
