"""scoretune runs: what runs there are, and comparisons of them."""
