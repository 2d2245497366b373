"""Losses that train a network on data: score matching and consistency."""
