"""Backbones, one file a model family: other people's networks behind one small door."""
