"""A local web page where people say which pictures they prefer, and a model learns from it."""
