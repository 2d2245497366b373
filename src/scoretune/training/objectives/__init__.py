"""Objectives, one file each: a differentiable loss of a policy on a batch."""
