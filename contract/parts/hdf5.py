"""Rows of HDF5 data sets: pixels, or encoded images and sounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from contract.parts.content import Part, pixels, require_row, require_size
from contract.parts.opened import Opened
from contract.undecodable import UndecodableError

NUM_OPEN = 16
# HDF5 forgets a chunk that is larger than this, and would decompress it again for each of its rows.
CHUNK_CACHE_BYTES = 64 << 20


def row(file: Path, name: str, number: int) -> Part:
    """One row: pixels, or the bytes of a variable-length uint8, string or opaque row."""
    import h5py

    dataset = _DATASETS.get(file, name)
    if not dataset.shape:
        raise UndecodableError(f"data set {name!r} of {file.name} has no rows")
    require_row(number, dataset.shape[0], f"data set {name!r}")
    require_size(math.prod(dataset.shape[1:]) * dataset.dtype.itemsize, f"a row of data set {name!r}")
    try:
        value = dataset[number]
    except (OSError, RuntimeError) as error:
        raise _DATASETS.error(error, file) from error
    if isinstance(value, bytes | np.void) and dataset.dtype.names is None:
        return bytes(value) if isinstance(value, bytes) else value.tobytes()
    if h5py.check_vlen_dtype(dataset.dtype) == np.uint8 and dataset.ndim == 1:
        content: bytes = value.tobytes()
        return content
    return pixels(np.asarray(value))


def _dataset(file: Path, name: str) -> Any:
    """The data set, in a file of its own: one that is let go of closes no other."""
    import h5py

    opened = h5py.File(file, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    dataset = opened.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise UndecodableError(f"{file.name} has no data set {name!r}")
    # A file may send its reader to others, wherever they lie.
    if dataset.file.filename != opened.filename or dataset.external or dataset.is_virtual:
        raise UndecodableError(f"data set {name!r} of {file.name} lies in another file")
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    require_size(chunk, f"a chunk of data set {name!r}")
    return dataset


_DATASETS: Opened[Any] = Opened("HDF5 file", NUM_OPEN, _dataset)
