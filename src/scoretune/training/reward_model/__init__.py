"""Reward models from votes: `scoretune train reward`."""
