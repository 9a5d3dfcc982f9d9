"""The script `pipeline`."""

from contract.errors import one_line


def main() -> None:
    """Run the command line; a user's mistake leaves as one line."""
    with one_line():
        from pipeline.cli import app

        app()


if __name__ == "__main__":
    main()
