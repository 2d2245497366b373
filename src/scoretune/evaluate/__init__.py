"""Numbers about a policy, with or without training."""
