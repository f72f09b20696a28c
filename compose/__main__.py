"""`python -m compose` is `boxloop`."""

from compose.cli import main

if __name__ == "__main__":
    main()
