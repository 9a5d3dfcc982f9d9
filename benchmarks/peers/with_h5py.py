"""h5py: one dataset, contiguous and in chunks of one row; `read_direct`, and the low-level interface beneath it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from h5py import h5s, h5t

from peers.batches import BATCH, DTYPE, SHAPE, Array, Mode, Read, Rows, blocks


def prepare(folder: Path, source: Array) -> dict[str, Mode]:
    """Write the rows twice; -> ways to read them."""
    contiguous, chunked = _write(folder / "contiguous.h5", source, None), _write(folder / "chunked.h5", source, 1)
    modes = {
        "read_direct, contiguous": _read_direct(contiguous),
        "read_direct, chunks of a row": _read_direct(chunked),
        "read_direct of sorted rows, contiguous": _read_sorted(contiguous),
        "low-level read, contiguous": _low_level(contiguous),
        "low-level read, chunks of a row": _low_level(chunked),
        "read_direct_chunk": _read_chunk(chunked),
    }
    return {name: Mode(read=read) for name, read in modes.items()}


def _write(path: Path, source: Array, rows_per_chunk: int | None) -> h5py.Dataset:
    chunks = None if rows_per_chunk is None else (rows_per_chunk, *SHAPE)
    with h5py.File(path, "w", libver="latest") as file:
        dataset = file.create_dataset("x", source.shape, DTYPE, chunks=chunks)
        for block in blocks(source):
            dataset[block] = source[block]
    return h5py.File(path, "r")["x"]


def _read_direct(dataset: h5py.Dataset) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position, row in enumerate(rows.tolist()):
            dataset.read_direct(batch[position], np.s_[row])
        return out

    return read


def _read_sorted(dataset: h5py.Dataset) -> Read:
    ascending = np.empty((BATCH, *SHAPE), DTYPE)

    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        order = np.argsort(rows)
        dataset.read_direct(ascending, np.s_[rows[order]])  # h5py takes ascending rows alone
        batch = out.numpy()
        for position, place in enumerate(order.tolist()):
            batch[place] = ascending[position]
        return out

    return read


def _low_level(dataset: h5py.Dataset) -> Read:
    one = (1, *SHAPE)
    file_space, memory_space, dtype = dataset.id.get_space(), h5s.create_simple(one), h5t.py_create(DTYPE)

    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position, row in enumerate(rows.tolist()):
            file_space.select_hyperslab((row, 0, 0), one)
            dataset.id.read(memory_space, file_space, batch[position : position + 1], dtype)
        return out

    return read


def _read_chunk(dataset: h5py.Dataset) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy().reshape(len(rows), -1).view(np.uint8)
        for position, row in enumerate(rows.tolist()):
            dataset.id.read_direct_chunk((row, 0, 0), out=batch[position])
        return out

    return read
