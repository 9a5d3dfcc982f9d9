"""The scripts `eval` and `retrieval`, and `python -m eval`.

`eval` is a shell builtin: bash runs `eval retrieval --index` as the command `retrieval --index`, so that both
names are installed.
"""

import sys

from contract.errors import one_line


def main() -> None:
    """Run `eval VERB ...`; a user's mistake leaves as one line."""
    _run("eval", sys.argv[1:])


def retrieval() -> None:
    """Run `retrieval ...`, which is `eval retrieval ...`."""
    _run("retrieval", sys.argv[1:])


def _run(program: str, arguments: list[str]) -> None:
    with one_line():
        from eval.cli import completed, programs

        programs[program](args=completed(arguments), prog_name=program)


if __name__ == "__main__":
    main()
