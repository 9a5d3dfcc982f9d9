"""zarr-python: chunks of one row, a file each and in shards of 512; row by row, together, and by fancy index."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
import zarr.api.asynchronous

from peers.batches import BLOCK, DTYPE, SHAPE, Array, Mode, Read, Rows, blocks

CONCURRENCY = 64


def prepare(folder: Path, source: Array) -> dict[str, Mode]:
    """Write the rows twice, neither compressed nor checked; -> ways to read them."""
    files = _write(folder / "files", source, None)
    shards = _write(folder / "shards", source, BLOCK)
    modes = {
        "a[i], a file a row": _row_by_row(zarr.open_array(files, mode="r")),
        "a[i], shards": _row_by_row(zarr.open_array(shards, mode="r")),
        "AsyncArray, a file a row": _gathered(files),
        f"AsyncArray, a file a row, async.concurrency {CONCURRENCY}": _gathered(files, CONCURRENCY),
        "AsyncArray, shards": _gathered(shards),
        "oindex, a file a row": _fancy(zarr.open_array(files, mode="r")),
        f"oindex, a file a row, async.concurrency {CONCURRENCY}": _fancy(
            zarr.open_array(files, mode="r"), CONCURRENCY
        ),
        "oindex, shards": _fancy(zarr.open_array(shards, mode="r")),
    }
    return {name: Mode(read=read) for name, read in modes.items()}


def _write(path: Path, source: Array, rows_per_shard: int | None) -> Path:
    array = zarr.create_array(
        path,
        shape=source.shape,
        dtype=DTYPE,
        chunks=(1, *SHAPE),
        shards=None if rows_per_shard is None else (rows_per_shard, *SHAPE),
        compressors=None,
        filters=None,
    )
    for block in blocks(source):
        array[block] = source[block]
    return path


def _row_by_row(array: zarr.Array[Any]) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position, row in enumerate(rows.tolist()):
            batch[position] = array[row]
        return out

    return read


def _gathered(path: Path, concurrency: int | None = None) -> Read:
    loop = asyncio.new_event_loop()
    array = loop.run_until_complete(zarr.api.asynchronous.open_array(store=path, mode="r"))

    async def gather(rows: Rows) -> list[Any]:
        return await asyncio.gather(*(array.getitem((row,)) for row in rows.tolist()))

    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        with _configured(concurrency):
            for position, values in enumerate(loop.run_until_complete(gather(rows))):
                batch[position] = values
        return out

    return read


def _fancy(array: zarr.Array[Any], concurrency: int | None = None) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        with _configured(concurrency):
            return torch.from_numpy(np.asarray(array.oindex[rows]))

    return read


def _configured(concurrency: int | None) -> Any:
    return zarr.config.set({} if concurrency is None else {"async.concurrency": concurrency})
