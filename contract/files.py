"""Files of this machine that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import google_crc32c

PARTIAL = ".partial"
# The most buffers that one system call takes (IOV_MAX).
MOST_PARTS = 1024
BLOCK_BYTES = 1 << 22


class Content(Protocol):
    """What a file is to hold, when that is too much to be in memory at once."""

    @property
    def crc32c(self) -> int:
        """The checksum of what `write` writes."""

    def write(self, file: IO[bytes]) -> None:
        """Write all of it, the same each time."""


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file under a temporary name; afterwards it is flushed to the disk, and renamed in one step."""
    partial = path.with_name(f"{path.name}{PARTIAL}")  # one writer at a time: what a killed one left is replaced
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(path: Path, *parts: Any) -> None:
    """Make buffers, one after the other, the content of a file in one step."""
    with replacing(path) as file:
        for start in range(0, len(parts), MOST_PARTS):
            _write_all(file.fileno(), [memoryview(p).cast("B") for p in parts[start : start + MOST_PARTS]])


def checksum(path: Path) -> int:
    """The crc32c of a file, read in pieces."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found = google_crc32c.extend(found, block)
    return found


def _write_all(file: int, parts: list[memoryview]) -> None:
    while parts:
        written = os.writev(file, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]
