"""`scoretune data`: what a file of preferences says, and pairs from scored samples."""
