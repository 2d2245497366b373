"""Tiny pipelines of random weights, one file a family: what checks and tests run on."""
