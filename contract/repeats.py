"""Values that stand more than once in a long column, found on the disk: no table of them is ever held.

Strings are told apart by 64 bits each, sorted in a file; the few that seem to repeat are then compared themselves.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.tables import blocks, utf8

# Hashes that are looked at at a time, 8 bytes each.
BLOCK = 1 << 20
# Strings that seem to repeat and are compared themselves; so many can't all be two strings of one hash.
MOST_COMPARED = 1 << 16
# Steele, Lea and Flood 2014: SplitMix64.
GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

Hashes = npt.NDArray[np.uint64]


class Repeated(NamedTuple):
    """How many strings stand in a column more than once, and the first of them."""

    number: int
    example: str


def repeated_strings(column: pa.ChunkedArray) -> Repeated | None:
    """The strings that repeat, in memory that does not depend on the length of the column; None without any."""
    doubtful = repeated(hashes(block) for block in blocks(column))
    if not len(doubtful):
        return None
    compared = doubtful[:MOST_COMPARED]
    counts: Counter[str] = Counter()
    for block in blocks(column):
        found = block.filter(pa.array(is_among(hashes(block), compared))).value_counts()
        counts.update(dict(zip(*(part.to_pylist() for part in found.flatten()), strict=True)))
    repeating = [text for text, count in counts.items() if count > 1]
    if not repeating:
        return None
    return Repeated(len(doubtful) - len(compared) + len(repeating), repeating[0])


def repeated(parts: Iterable[Hashes]) -> Hashes:
    """Each value that stands there more than once, uint64 [m], ascending."""
    with tempfile.TemporaryFile(prefix="precept-") as file:
        for part in parts:
            file.write(part.data)
        file.flush()
        if file.tell() == 0:
            return np.empty(0, np.uint64)
        values = np.memmap(file, np.uint64, "r+")
        values.sort()
        found = [values[:0]]
        for start in range(0, len(values) - 1, BLOCK):
            block = np.asarray(values[start : start + BLOCK + 1])
            found.append(np.unique(block[1:][block[1:] == block[:-1]]))
        return np.unique(np.concatenate(found))


def is_among(values: Hashes, ascending: Hashes) -> npt.NDArray[np.bool_]:
    """Which of the values are among others, which are in order, bool [n]."""
    places = np.searchsorted(ascending, values)
    found = np.zeros(len(values), bool)
    inside = places < len(ascending)
    found[inside] = ascending[places[inside]] == values[inside]
    return found


def hashes(strings: pa.StringArray) -> Hashes:
    """64 bits of each string, uint64 [n]: equal strings, equal hashes, on every machine."""
    bounds, text = utf8(strings)
    lengths, starts = np.diff(bounds).astype(np.int64), bounds[:-1].astype(np.int64) - bounds[0]
    # The eight bytes from any byte on, as one number.
    words = np.ndarray(len(text) + 1, "<u8", bytes(text) + bytes(8), strides=(1,))
    result = mixed(lengths.astype(np.uint64))
    rows, done = np.flatnonzero(lengths > 0), 0
    while len(rows):
        excess = np.clip(done + 8 - lengths[rows], 0, 7)
        ours = np.uint64(0xFFFFFFFFFFFFFFFF) >> (8 * excess).astype(np.uint64)
        result[rows] = mixed(result[rows] ^ (words[starts[rows] + done] & ours))
        done += 8
        rows = rows[lengths[rows] > done]
    return result


def mixed(values: Hashes) -> Hashes:
    """Numbers of which each bit depends on every bit of `values`, uint64 [n]."""
    mixing = values + GOLDEN
    mixing ^= mixing >> np.uint64(30)
    mixing *= FIRST
    mixing ^= mixing >> np.uint64(27)
    mixing *= SECOND
    mixing ^= mixing >> np.uint64(31)
    return mixing
