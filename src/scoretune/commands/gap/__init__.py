"""scoretune gap: the reward under every sampler, stochasticity and number of steps."""
