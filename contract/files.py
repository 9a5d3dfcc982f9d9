"""Files of this machine that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
# The most buffers that one system call takes (IOV_MAX).
MOST_PARTS = 1024


def replace_file(path: Path, *parts: Any) -> None:
    """Write buffers one after the other under a temporary name, flush them to the disk, and rename in one step."""
    partial = path.with_name(f"{path.name}{PARTIAL}")  # one writer at a time: what a killed one left is replaced
    try:
        with partial.open("wb", buffering=0) as file:
            for start in range(0, len(parts), MOST_PARTS):
                _write_all(file.fileno(), [memoryview(p).cast("B") for p in parts[start : start + MOST_PARTS]])
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_all(file: int, parts: list[memoryview]) -> None:
    while parts:
        written = os.writev(file, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]
