"""Rewards, one file each: what a sample is worth."""
