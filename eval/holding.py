"""Folders in which one process writes at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contract.errors import RunError


@contextmanager
def alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Make the folder, and hold it against another process; a killed one lets go of it."""
    require_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"note: {folder}: another process writes there; waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def require_folder(folder: Path) -> None:
    """Refuse a file in a folder's place."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: it is a file, and a folder is wanted")
