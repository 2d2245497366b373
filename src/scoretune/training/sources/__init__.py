"""Sources, one file each: where rounds of minibatches come from."""
