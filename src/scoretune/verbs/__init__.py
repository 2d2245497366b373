"""Verbs of the command line, one file a topic; heavy imports live inside the functions."""
