"""`scoretune sweep`: a search over settings, as many runs of a recipe that share one study."""
