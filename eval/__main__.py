"""The scripts `eval` and `retrieval`, and `python -m eval`.

`eval` is a shell builtin: bash runs `eval retrieval --index` as the command `retrieval --index`, so that both
names are installed.
"""

import sys

from contract.errors import run_command_line


def main() -> None:
    """Run `eval VERB ...`; a user's mistake leaves as one line."""
    _run("eval", sys.argv[1:] or ["--help"])


def retrieval() -> None:
    """Run `retrieval ...`, which is `eval retrieval ...`."""
    _run("retrieval", sys.argv[1:])


def _run(program: str, arguments: list[str]) -> None:
    from eval.cli import completed, programs

    run_command_line(programs[program], program, completed(arguments))


if __name__ == "__main__":
    main()
