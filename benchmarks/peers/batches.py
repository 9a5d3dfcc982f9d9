"""What every reader delivers: batches of 256 float16 [197, 768], as torch tensors.

Row r begins with the two numbers r // 2048 and r % 2048, both exact in float16, so that a batch tells which rows it
holds even where a library chose them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SHAPE = (197, 768)
BATCH = 256
DTYPE = np.dtype(np.float16)
ROW_BYTES = DTYPE.itemsize * SHAPE[0] * SHAPE[1]
# A float16 counts to 2048 without a gap.
RADIX = 2048
BLOCK = 512

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
# Takes the rows that are asked for, int64 [256], and a buffer [256, 197, 768], the same at every call, which may be
# used or not; -> the batch.
Read = Callable[[Rows, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way of reading; with `own_order` the library chooses the rows, as loaders of sequential files do."""

    read: Read
    own_order: bool = False


def write_source(path: Path, num_rows: int) -> Array:
    """Random rows as a raw file, float16 [num_rows, 197, 768]; -> `open_source` of it."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, num_rows, BLOCK):
            rows = np.arange(start, min(start + BLOCK, num_rows))
            block = rng.standard_normal((len(rows), *SHAPE), dtype=np.float32).astype(DTYPE)
            block[:, 0, 0], block[:, 0, 1] = np.divmod(rows, RADIX)
            file.write(block.data)
    return open_source(path, num_rows)


def open_source(path: Path, num_rows: int) -> Array:
    """The raw file, memory-mapped; a plain ndarray, since indexing an np.memmap costs more."""
    return np.asarray(np.memmap(path, DTYPE, "r", shape=(num_rows, *SHAPE)))


def blocks(source: Array) -> list[slice]:
    """The source's rows, 512 at a time."""
    return [slice(start, min(start + BLOCK, len(source))) for start in range(0, len(source), BLOCK)]


def buffer() -> torch.Tensor:
    """Room for one batch, its pages in place."""
    return torch.ones((BATCH, *SHAPE), dtype=torch.float16)


def draw(rng: np.random.Generator, num_rows: int) -> Rows:
    """Random rows without repetition, int64 [256]."""
    return rng.permutation(num_rows)[:BATCH]


def floor(source: Array) -> Read:
    """What everything is compared with: rows copied out of the raw map, one by one, into the buffer."""

    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position, row in enumerate(rows.tolist()):
            batch[position] = source[row]
        return out

    return read


def check(mode: Mode, source: Array, rng: np.random.Generator) -> None:
    """Raise ValueError unless a batch is bit for bit what the source holds."""
    asked = draw(rng, len(source))
    out = torch.zeros((BATCH, *SHAPE), dtype=torch.float16)
    batch = mode.read(asked, out).numpy()
    marks = batch[:, 0, :2].astype(np.int64)
    rows = marks[:, 0] * RADIX + marks[:, 1]
    # In the order in which they were asked for: targets and captions are read in the same one.
    if len(np.unique(rows)) != BATCH or not (mode.own_order or np.array_equal(rows, asked)):
        raise ValueError("other rows than those that were asked for, or in another order")
    if batch.dtype != DTYPE or not np.array_equal(batch.view(np.uint16), source[rows].view(np.uint16)):
        raise ValueError("other values than the source's")
