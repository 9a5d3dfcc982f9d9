"""The user's mistakes, each with an exit code, and the one way in which they leave a program."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class UserError(Exception):
    """Something the user can mend; the message names the file, the key, what was found and what to do."""

    exit_code = 1


class ConfigError(UserError):
    """A configuration that can't be read, has an unknown key, or a value of the wrong type."""

    exit_code = 2


class DataError(UserError):
    """A dataset that is missing, empty, or not what its manifest says."""

    exit_code = 3


class StoreError(UserError):
    """A target store that is missing, incomplete, damaged, or another one than was expected."""

    exit_code = 4


class RunError(UserError):
    """A training run that is missing, unfinished, or can't go on."""

    exit_code = 5


class MissingExtraError(UserError):
    """Weights or an optional package that are not on this machine."""

    exit_code = 6


@contextmanager
def one_line() -> Iterator[None]:
    """Turn a `UserError`, or the operating system's refusal, into one line on stderr and an exit code."""
    try:
        yield
    except UserError as error:
        _leave(str(error), error.exit_code)
    except OSError as error:
        # A full disk or a read-only folder reaches us from any write; its own text names the file.
        _leave(str(error), UserError.exit_code)


def run_command_line(app: Any, name: str, arguments: Sequence[str]) -> None:
    """Run a Typer app; a mistake in the command line leaves as one line, like every other."""
    with one_line():
        try:
            exit_code = app(args=list(arguments), prog_name=name, standalone_mode=False)
        except Exception as error:
            # What the parser raises; known by its method, so that no parser is imported here.
            if not hasattr(error, "format_message"):
                raise
            raise ConfigError(
                f"{error.format_message().rstrip('.')}; `{name} --help` tells what there is"
            ) from error
    raise SystemExit(exit_code if isinstance(exit_code, int) else 0)


def _leave(message: str, exit_code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(exit_code) from None
