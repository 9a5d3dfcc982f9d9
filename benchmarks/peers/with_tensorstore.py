"""tensorstore: Zarr v3 arrays whose chunks are one row, in shards of 512 and as single files.

Fastest is to have it write into a batch that is there already (`ts.array(out).write(array[rows])`), which it does
from several threads; its pool of caches holds the shards' indexes and is too small for rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorstore as ts
import torch

from peers.batches import BLOCK, SHAPE, Array, Mode, Read, Rows, blocks

CACHE_BYTES = 4 << 20
BYTES: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
CHECKED = [*BYTES, {"name": "crc32c"}]


def prepare(folder: Path, source: Array) -> dict[str, Mode]:
    """Write the rows three times; -> ways to read them."""
    files, shards, checked = folder / "files", folder / "shards", folder / "checked"
    for path, codecs in ((files, BYTES), (shards, sharded(BYTES)), (checked, sharded(CHECKED))):
        array = create(path, len(source), codecs, sync=False)
        for block in blocks(source):
            array[block].write(source[block]).result()
    modes = {
        "into the batch, shards, mapped": _into(_open(shards, "memmap")),
        "into the batch, shards, mapped, one thread": _into(_open(shards, "memmap", 1)),
        "into the batch, shards": _into(_open(shards, "default")),
        "into the batch, shards, one thread": _into(_open(shards, "default", 1)),
        "into the batch, a file a row, mapped": _into(_open(files, "memmap")),
        "into the batch, a file a row": _into(_open(files, "default")),
        "concurrent reads, a file a row, mapped": _concurrent(_open(files, "memmap")),
        "concurrent reads, shards, mapped": _concurrent(_open(shards, "memmap")),
        "into the batch, shards with crc32c, mapped": _into(_open(checked, "memmap")),
        "into the batch, shards with crc32c": _into(_open(checked, "default")),
    }
    return {name: Mode(read=read) for name, read in modes.items()}


def sharded(codecs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Codecs of shards whose inner chunks are one row and go through `codecs`."""
    shape = [1, *SHAPE]
    return [
        {
            "name": "sharding_indexed",
            "configuration": {"chunk_shape": shape, "codecs": codecs, "index_codecs": CHECKED},
        }
    ]


def create(path: Path, num_rows: int, codecs: list[dict[str, Any]], *, sync: bool) -> ts.TensorStore:
    """A new array float16 [num_rows, 197, 768]; with `sync`, a write has reached the disk when it is done."""
    is_sharded = codecs[0]["name"] == "sharding_indexed"
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path.absolute())},
        "metadata": {
            "shape": [num_rows, *SHAPE],
            "data_type": "float16",
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [BLOCK if is_sharded else 1, *SHAPE]},
            },
            "codecs": codecs,
        },
    }
    return ts.open(spec, create=True, context=ts.Context({"file_io_sync": sync})).result()


def _open(path: Path, mode: str, num_threads: int | None = None) -> ts.TensorStore:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path.absolute())},
        "recheck_cached_data": False,
        "recheck_cached_metadata": "open",
    }
    context: dict[str, Mapping[str, Any]] = {
        "cache_pool": {"total_bytes_limit": CACHE_BYTES},
        "file_io_mode": {"mode": mode},
    }
    if num_threads is not None:
        context |= {"data_copy_concurrency": {"limit": num_threads}, "file_io_concurrency": {"limit": num_threads}}
    return ts.open(spec, read=True, context=ts.Context(context)).result()


def _into(array: ts.TensorStore) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        ts.array(out.numpy(), copy=False).write(array[rows.tolist()]).result()
        return out

    return read


def _concurrent(array: ts.TensorStore) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position, future in enumerate([array[row].read() for row in rows.tolist()]):
            batch[position] = future.result()
        return out

    return read
