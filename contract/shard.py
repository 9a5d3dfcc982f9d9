"""One shard file of a Zarr v3 array: written whole, read through a memory map.

    chunk 0 | crc32c | chunk 1 | crc32c | ... | index: (offset, size) of every chunk, uint64 | crc32c of the index

The inner codecs are `bytes` (little-endian) and `crc32c` alone, so a chunk lies in the file as it lies in memory:
any Zarr reader opens it, and ours copies rows straight out of the map.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

CHECKSUM_BYTES = 4
EMPTY_CHUNK = np.iinfo(np.uint64).max
# Below this a vectorised copy wins over a copy for each row.
LARGE_ROW_BYTES = 4096

Array = npt.NDArray[Any]


class DamagedShardError(Exception):
    """A shard file that is absent, cut short or altered; the message says which and how."""


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """How an array's shards are laid out: dtype and shape of one row, rows of a shard and of an inner chunk."""

    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    rows_per_shard: int
    rows_per_chunk: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * math.prod(self.row_shape)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk with its checksum."""
        return self.rows_per_chunk * self.row_bytes + CHECKSUM_BYTES

    @property
    def num_chunks(self) -> int:
        """Entries of a shard's index."""
        return self.rows_per_shard // self.rows_per_chunk

    def file_bytes(self, num_rows: int) -> int:
        """Size of the file of a shard that holds `num_rows` rows."""
        return self.num_filled(num_rows) * self.chunk_bytes + self.num_chunks * 16 + CHECKSUM_BYTES

    def num_filled(self, num_rows: int) -> int:
        """Inner chunks that `num_rows` rows fill, the last one perhaps in part."""
        return -(-num_rows // self.rows_per_chunk)


def write_shard(path: Path, rows: Array, layout: ShardLayout) -> dict[str, int]:
    """Write `rows` [n, *row_shape] as the shard file `path`, all or nothing; -> its size and crc32c."""
    num_filled = layout.num_filled(len(rows))
    content = np.zeros(layout.file_bytes(len(rows)), np.uint8)
    chunks = content[: num_filled * layout.chunk_bytes].reshape(num_filled, layout.chunk_bytes)
    flat = np.ascontiguousarray(rows, layout.dtype).reshape(len(rows), -1).view(np.uint8)
    for number, chunk in enumerate(chunks):
        part = flat[number * layout.rows_per_chunk : (number + 1) * layout.rows_per_chunk].reshape(-1)
        chunk[: part.size] = part
        chunk[-CHECKSUM_BYTES:] = _checksum(chunk[:-CHECKSUM_BYTES])
    index = _regular_index(layout, num_filled).view(np.uint8).reshape(-1)
    content[chunks.size : -CHECKSUM_BYTES] = index
    content[-CHECKSUM_BYTES:] = _checksum(index)

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.data)
    return {"size_bytes": content.size, "crc32c": google_crc32c.value(content)}


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, flush it to the disk, and put it in place in one step."""
    partial = path.with_name(f"{path.name}.partial")  # one writer at a time: what a killed one left is replaced
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def allow_many_maps() -> None:
    """Raise the soft limit of open files to the hard one: every map holds a file, and COCO's captions are 1,200."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ShardMap:
    """A shard file, memory-mapped."""

    def __init__(self, path: Path, layout: ShardLayout, num_rows: int) -> None:
        self._layout = layout
        expected_bytes = layout.file_bytes(num_rows)
        try:
            with path.open("rb") as file:
                found_bytes = os.fstat(file.fileno()).st_size
                if found_bytes != expected_bytes:
                    raise DamagedShardError(f"{path} has {found_bytes} bytes, not {expected_bytes}")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise DamagedShardError(f"{path} is missing") from error
        num_filled = layout.num_filled(num_rows)
        content = np.frombuffer(self._map, np.uint8)
        index = content[num_filled * layout.chunk_bytes : -CHECKSUM_BYTES]
        if bytes(_checksum(index)) != bytes(content[-CHECKSUM_BYTES:]):
            raise DamagedShardError(f"{path}: the checksum of its index is wrong")
        if not np.array_equal(index.view("<u8").reshape(-1, 2), _regular_index(layout, num_filled)):
            raise DamagedShardError(f"{path}: its chunks do not lie in order; it was not written by Precept")
        row = layout.dtype.itemsize
        inner = np.empty(layout.row_shape, layout.dtype).strides if layout.row_shape else ()
        self.rows = np.ndarray(
            (num_filled, layout.rows_per_chunk, *layout.row_shape),
            layout.dtype,
            buffer=self._map,
            strides=(layout.chunk_bytes, layout.row_bytes or row, *inner),
        )

    def copy(self, rows: npt.NDArray[np.int64], out: Array, positions: npt.NDArray[np.int64]) -> None:
        """Copy this shard's `rows` (counted from its own first) to `out[positions]`."""
        chunks, offsets = np.divmod(rows, self._layout.rows_per_chunk)
        if self._layout.row_bytes < LARGE_ROW_BYTES:
            out[positions] = self.rows[chunks, offsets]
            return
        for position, chunk, offset in zip(positions.tolist(), chunks.tolist(), offsets.tolist(), strict=True):
            out[position] = self.rows[chunk, offset]


def _regular_index(layout: ShardLayout, num_filled: int) -> npt.NDArray[np.uint64]:
    """The index of chunks that lie one after the other, uint64 [num_chunks, 2]."""
    index = np.full((layout.num_chunks, 2), EMPTY_CHUNK, "<u8")
    index[:num_filled, 0] = np.arange(num_filled) * layout.chunk_bytes
    index[:num_filled, 1] = layout.chunk_bytes
    return index


def _checksum(content: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.array([google_crc32c.value(content)], "<u4").view(np.uint8)
