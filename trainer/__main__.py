"""The script `trainer`."""

from contract.errors import one_line


def main() -> None:
    """Run the command line; a user's mistake leaves as one line."""
    with one_line():
        from trainer.cli import app

        app(prog_name="trainer")


if __name__ == "__main__":
    main()
