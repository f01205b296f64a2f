"""The shell command `polargrad`, and `python -m polargrad`."""

from polargrad.lab.openmp import yield_cores


def main() -> int:
    """Set what torch reads from the environment when it is imported, then run the command line."""
    yield_cores()
    from polargrad.lab.cli.main import main as command_line

    return command_line()


if __name__ == "__main__":
    raise SystemExit(main())
