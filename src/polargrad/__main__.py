"""`python -m polargrad` is `polargrad`."""

from polargrad.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
