"""Closed forms and bounds that the samplers are measured against."""
