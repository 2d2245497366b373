"""Networks behind the rewards: loading, preprocessing, heads, converters."""
