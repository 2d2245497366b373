"""What a run will cost, worked out before anything of it is loaded."""
