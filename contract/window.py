"""Shard files of one array side by side in memory, so that rows of any of them are one gather.

A range of addresses is set aside, and shard n is mapped at n times a stride: then a row's address is a linear
function of (shard, chunk, place in the chunk), which is all that NumPy asks of an array. Copying 256 small rows out
of 49 shards costs one indexing operation instead of 49.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from contract.shard import Array, DamagedShardError, ShardLayout

# Of <sys/mman.h>, the same on Linux and macOS; the `mmap` module has no name for them.
MAP_FIXED = 0x10
PROT_NONE = 0
FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Window:
    """Room for `num_shards` shards; `rows` [shards, chunks, rows of a chunk, ...] reads those that were put there.

    `num_rows` int64 [shards] says how many rows of each are there; no other may be read. The window must live for
    as long as `rows` is used.
    """

    def __init__(self, layout: ShardLayout, num_shards: int) -> None:
        self._layout = layout
        self._stride = -(-layout.file_bytes(layout.rows_per_shard) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._size = max(1, num_shards) * self._stride
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._start = _mapped(None, self._size, PROT_NONE, anonymous, -1)
        self._end = weakref.finalize(self, _libc.munmap, self._start, self._size)
        self._end.atexit = False  # a thread may still be reading then
        self.num_rows = np.zeros(num_shards, np.int64)
        inner = np.empty(layout.row_shape, layout.dtype).strides
        self.rows: Array = np.ndarray(
            (num_shards, layout.num_chunks, layout.rows_per_chunk, *layout.row_shape),
            layout.dtype,
            buffer=memoryview((ctypes.c_char * self._size).from_address(self._start)).cast("B"),
            strides=(self._stride, layout.chunk_bytes, layout.row_bytes, *inner),
        )

    def put(self, shard: int, path: Path, num_rows: int) -> None:
        """Map a shard's file, whose content has been looked at, at its place."""
        with path.open("rb") as file:
            # By now another may lie there; where a map ends before the rows do, reading them kills the process.
            size, expected = os.fstat(file.fileno()).st_size, self._layout.file_bytes(num_rows)
            if not expected <= size <= self._stride:
                raise DamagedShardError(f"{path} has {size} bytes, not {expected}")
            place = self._start + shard * self._stride
            _mapped(place, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file.fileno())
        self.num_rows[shard] = num_rows

    def forget(self, shard: int) -> None:
        """Let a shard be put there again, since its file has been replaced."""
        self.num_rows[shard : shard + 1] = 0


def _mapped(place: int | None, size: int, protection: int, flags: int, file: int) -> int:
    found = _libc.mmap(place, size, protection, flags, file, 0)
    if found == FAILED:
        number = ctypes.get_errno()
        raise OSError(number, f"a map of {size} bytes: {os.strerror(number)}")
    return int(found)
