"""Verbs of the command line, one file or folder a verb, with all that this verb alone needs."""
