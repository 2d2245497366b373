"""`python -m scoretune` is `scoretune`."""

from scoretune.cli import main

if __name__ == "__main__":
    main()
