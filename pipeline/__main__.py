"""The script `pipeline`."""

import sys

from contract.errors import run_command_line


def main() -> None:
    """Run the command line; a user's mistake leaves as one line."""
    from pipeline.cli import app

    run_command_line(app, "pipeline", sys.argv[1:] or ["--help"])


if __name__ == "__main__":
    main()
