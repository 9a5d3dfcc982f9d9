"""One shard file of a Zarr v3 array: written whole, read through a memory map.

    chunk 0 | crc32c | chunk 1 | crc32c | ... | index: (offset, size) of every chunk, uint64 | crc32c of the index

The inner codecs are `bytes` (little-endian) and `crc32c` alone, so a chunk lies in the file as it lies in memory:
any Zarr reader opens it, and ours copies rows straight out of the map.

A page of a map that its file no longer reaches kills the process (SIGBUS), and nothing can catch that. So Precept
never shortens a file or writes into it: it puts another in its place (`contract.files`), and whoever has mapped
the old one goes on reading that. Tools that copy into a file in place (`cp`, `rsync --inplace`) must not be let
loose on a store that is being read.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

CHECKSUM_BYTES = 4
EMPTY_CHUNK = np.iinfo(np.uint64).max
# Below this a vectorised copy wins over a copy for each row.
LARGE_ROW_BYTES = 4096
MANY_ROWS = 8

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]


class DamagedShardError(Exception):
    """A shard file that is absent, cut short or altered; the message says which and how.

    `row` is the damaged row, counted from the shard's first, where it is a row and not the whole file.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """How an array's shards are laid out: dtype and shape of one row, rows of a shard and of an inner chunk.

    A row here is one view of one item.
    """

    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    rows_per_shard: int
    rows_per_chunk: int

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.row_shape)

    @cached_property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk with its checksum."""
        return self.rows_per_chunk * self.row_bytes + CHECKSUM_BYTES

    @cached_property
    def num_chunks(self) -> int:
        """Entries of a shard's index."""
        return self.rows_per_shard // self.rows_per_chunk

    def file_bytes(self, num_rows: int) -> int:
        """Size of the file of a shard that holds `num_rows` rows."""
        return self.num_filled(num_rows) * self.chunk_bytes + self.num_chunks * 16 + CHECKSUM_BYTES

    def num_filled(self, num_rows: int) -> int:
        """Inner chunks that `num_rows` rows fill, the last one perhaps in part."""
        return -(-num_rows // self.rows_per_chunk)


def shard_content(rows: Array, layout: ShardLayout) -> tuple[list[Array], int]:
    """The file of a shard that holds `rows` [n, *row_shape], as buffers in order, and its digest."""
    num_filled = layout.num_filled(len(rows))
    flat = np.ascontiguousarray(rows, layout.dtype).reshape(-1).view(np.uint8)
    size = layout.chunk_bytes - CHECKSUM_BYTES
    parts: list[Array] = []
    for number in range(num_filled):
        chunk = flat[number * size : (number + 1) * size]
        if len(chunk) < size:  # the last one is filled up with zeros
            chunk = np.concatenate([chunk, np.zeros(size - len(chunk), np.uint8)])
        parts += [chunk, _checksum(chunk)]
    digest = _digest(np.concatenate(parts[1::2]) if parts else np.empty(0, np.uint8))
    index = _regular_index(layout, num_filled).view(np.uint8).reshape(-1)
    return [*parts, index, _checksum(index)], digest


class ShardMap:
    """A shard file of at least `num_rows` rows, memory-mapped.

    It may hold more: whoever opened the store before it grew reads on while the last shard is replaced.
    """

    def __init__(self, path: Path, layout: ShardLayout, num_rows: int, name: str = "") -> None:
        self.num_rows = num_rows
        self._layout, self._name = layout, name or str(path)
        try:
            with path.open("rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                num_filled, rest = divmod(num_bytes - layout.file_bytes(0), layout.chunk_bytes)
                if rest or not layout.num_filled(num_rows) <= num_filled <= layout.num_chunks:
                    raise DamagedShardError(
                        f"{self._name} has {num_bytes} bytes, not {layout.file_bytes(num_rows)}"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise DamagedShardError(f"{self._name} is missing") from error
        if layout.row_bytes < LARGE_ROW_BYTES:  # the whole file once: to ask for each small row takes as long
            self._map.madvise(mmap.MADV_WILLNEED)
        content = np.frombuffer(self._map, np.uint8)
        index = content[num_filled * layout.chunk_bytes : -CHECKSUM_BYTES]
        if bytes(_checksum(index)) != bytes(content[-CHECKSUM_BYTES:]):
            raise DamagedShardError(f"{self._name}: the checksum of its index is wrong")
        if not np.array_equal(index.view("<u8").reshape(-1, 2), _regular_index(layout, num_filled)):
            raise DamagedShardError(f"{self._name}: its chunks do not lie in order; it was not written by Precept")
        inner = np.empty(layout.row_shape, layout.dtype).strides
        self._rows: Array = np.ndarray(
            (num_filled, layout.rows_per_chunk, *layout.row_shape),
            layout.dtype,
            buffer=self._map,
            strides=(layout.chunk_bytes, layout.row_bytes, *inner),
        )
        self._chunks: npt.NDArray[np.uint8] = np.ndarray(
            (num_filled, layout.chunk_bytes), np.uint8, buffer=self._map
        )

    def copy(self, rows: Rows, out: Array, positions: Rows, *, check: bool = False) -> None:
        """Copy this shard's `rows` (counted from its own first) to `out[positions]`.

        With `check`, the checksums of the chunks they lie in are verified.
        """
        rows_per_chunk = self._layout.rows_per_chunk
        if len(rows) >= MANY_ROWS and self._layout.row_bytes < LARGE_ROW_BYTES:
            for chunk in set((rows // rows_per_chunk).tolist()) if check else ():
                self._check(chunk)
            out[positions] = self._rows[np.divmod(rows, rows_per_chunk)]
            return
        checked = set()
        for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
            chunk, offset = divmod(row, rows_per_chunk)
            out[position] = self._rows[chunk, offset]
            if check and chunk not in checked:
                self._check(chunk)  # right after the copy, while the row is in the processor's cache
                checked.add(chunk)

    def will_need(self, rows: Rows) -> None:
        """Have the kernel read the pages of these rows ahead, without waiting for them."""
        layout = self._layout
        if layout.row_bytes < LARGE_ROW_BYTES:
            return
        for row in rows.tolist():
            chunk, offset = divmod(row, layout.rows_per_chunk)
            start = chunk * layout.chunk_bytes + offset * layout.row_bytes
            into_page = start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start - into_page, into_page + layout.row_bytes)

    def digest(self) -> int:
        """Check every byte, and return the digest."""
        for chunk in range(len(self._chunks)):
            self._check(chunk)
        return _digest(np.ascontiguousarray(self._chunks[:, -CHECKSUM_BYTES:]))

    def _check(self, chunk: int) -> None:
        content = self._chunks[chunk]
        if bytes(_checksum(content[:-CHECKSUM_BYTES])) != bytes(content[-CHECKSUM_BYTES:]):
            first = chunk * self._layout.rows_per_chunk
            raise DamagedShardError(f"{self._name}: the checksum of a row is wrong", first)


def _regular_index(layout: ShardLayout, num_filled: int) -> npt.NDArray[np.uint64]:
    """The index of chunks that lie one after the other, uint64 [num_chunks, 2]."""
    index = np.full((layout.num_chunks, 2), EMPTY_CHUNK, "<u8")
    index[:num_filled, 0] = np.arange(num_filled) * layout.chunk_bytes
    index[:num_filled, 1] = layout.chunk_bytes
    return index


def _checksum(content: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.array([google_crc32c.value(content)], "<u4").view(np.uint8)


def _digest(checksums: npt.NDArray[np.uint8]) -> int:
    return int(google_crc32c.value(checksums.reshape(-1)))
