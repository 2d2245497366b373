"""Rich Preference Optimization (arXiv 2503.11720): critique, edit, filter, pairs.

Four roles that know nothing of each other: a critic says what is wrong with a picture, a writer
makes instructions of it, an editor carries them out, and a filter keeps the edits that are better.
"""
