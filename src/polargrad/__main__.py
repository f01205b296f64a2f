"""The shell command `polargrad`, and `python -m polargrad`."""

from polargrad.lab.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
