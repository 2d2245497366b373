"""Laws with known answers, which an installation must obey: a tuple of them for each topic.

Each law asks the installed library, on the user's device, for a number that a formula, a paper or
another library gives too. `scoretune doctor` measures them all.
"""
