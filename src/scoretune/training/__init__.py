"""How one learns: objectives, credit, sources, the loop, the run."""
