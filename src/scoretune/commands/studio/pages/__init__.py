"""The studio's pages: a file each, with its routes and what it shows."""
