"""How the schema of stores came to be as it is: one file a revision, run by Alembic."""
