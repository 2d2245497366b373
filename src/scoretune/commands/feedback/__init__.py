"""`scoretune feedback`: what people and models say of samples, kept in a store."""
