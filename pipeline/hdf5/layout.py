"""What the two directions share: the names in the layout, and the size of what is moved at a time."""

from __future__ import annotations

from collections.abc import Iterator

from contract.manifest import ITEMS

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
