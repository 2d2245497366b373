"""Scenes of real handwriting: the small world that the shipped model draws."""
