"""What the two directions share: the names in the layout, and the size of what is moved at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from contract.errors import StoreError
from contract.manifest import ITEMS
from contract.storage import StorePath, is_url
from pipeline.plan import SPARE_BYTES, gigabytes

FORMAT = 1
FORMAT_ATTRIBUTE = "precept_format"
COLUMNS = tuple(ITEMS.names)
QUARANTINED = "quarantined"
PAIRS = "pairs"
PAIR_KINDS = ("image-text", "image-audio", "audio-text")

# Rows are decoded and checked in blocks of about this size.
BLOCK_BYTES = 64 * 2**20
NUM_STRINGS = 65536


def blocks(rows: range, row_bytes: int) -> Iterator[range]:
    """The rows, some at a time: as many as BLOCK_BYTES hold, at least one."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def require_room(path: StorePath, needed_bytes: int) -> None:
    """Raise `StoreError` unless the disk has room; nothing is known of a remote one."""
    if is_url(path):
        return
    folder = next(one for one in [Path(path), *Path(path).absolute().parents] if one.exists())
    free = shutil.disk_usage(folder).free
    if needed_bytes and needed_bytes + SPARE_BYTES > free:
        raise StoreError(
            f"{path}: {gigabytes(needed_bytes)} are to be written and {gigabytes(free)} are free; "
            "free some space, or write to another disk"
        )
