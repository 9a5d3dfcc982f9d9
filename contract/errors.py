"""The user's mistakes, each with an exit code, and the one way in which they leave a program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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


def _leave(message: str, exit_code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(exit_code) from None
