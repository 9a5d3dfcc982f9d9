"""litdata: optimized chunks, which it maps when they lie on a local disk, by index and through its loader.

Its defaults decode a window of neighbours with every row that is read; `batch_decode=0` switches that off. It keeps
few chunks mapped, so the largest that its 32-bit offsets allow are the fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch

from peers.batches import BATCH, BLOCK, DTYPE, ROW_BYTES, SHAPE, Array, Mode, Read, Rows, open_source

LARGEST_CHUNK_BYTES = 4_000_000_000


def prepare(folder: Path, source: Array) -> dict[str, Mode]:
    """Write the rows as tensors, in small and in large chunks, as bytes, and as tokens; -> ways to read them."""
    tokens = litdata.TokensLoader(block_size=SHAPE[0] * SHAPE[1])
    small = _write(folder / "small", source, _tensor, BLOCK * ROW_BYTES)
    large = _write(folder / "large", source, _tensor)
    raw = _write(folder / "bytes", source, bytes)
    flat = _write(folder / "tokens", source, _tokens, item_loader=tokens)
    return {
        "ds[i], tensors": Mode(read=_stacked(litdata.StreamingDataset(large, batch_decode=0))),
        "ds[i], tensors, chunks of 155 MB": Mode(read=_stacked(litdata.StreamingDataset(small, batch_decode=0))),
        "ds[i], tensors, its defaults": Mode(read=_stacked(litdata.StreamingDataset(small))),
        "ds[i], bytes": Mode(read=_copied(litdata.StreamingDataset(raw, batch_decode=0))),
        "ds[i], TokensLoader": Mode(read=_viewed(litdata.StreamingDataset(flat, item_loader=tokens))),
        "StreamingDataLoader, tensors": Mode(read=_loaded(large), own_order=True),
    }


def _write(
    folder: Path,
    source: Array,
    convert: Callable[[Array], Any],
    chunk_bytes: int = LARGEST_CHUNK_BYTES,
    item_loader: Any = None,
) -> str:
    assert isinstance(source.base, np.memmap)
    item = partial(_item, Path(str(source.base.filename)), len(source), convert)
    litdata.optimize(
        item,
        list(range(len(source))),
        str(folder),
        chunk_bytes=chunk_bytes,
        item_loader=item_loader,
        num_workers=1,
        verbose=False,
    )
    return str(folder)


def _item(path: Path, num_rows: int, convert: Callable[[Array], Any], row: int) -> Any:
    return convert(np.array(open_source(path, num_rows)[row]))


def _tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(values)


def _tokens(values: Array) -> torch.Tensor:
    return torch.from_numpy(values).reshape(-1)


def _stacked(dataset: Any) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        return torch.stack([dataset[row] for row in rows.tolist()], out=out)

    return read


def _copied(dataset: Any) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position, row in enumerate(rows.tolist()):
            batch[position] = np.frombuffer(dataset[row], DTYPE).reshape(SHAPE)
        return out

    return read


def _viewed(dataset: Any) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        for position, row in enumerate(rows.tolist()):
            out[position] = dataset[row].view(SHAPE)
        return out

    return read


def _loaded(folder: str) -> Read:
    batches = _endless(folder)

    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        return next(batches)

    return read


def _endless(folder: str) -> Iterator[torch.Tensor]:
    dataset = litdata.StreamingDataset(folder, shuffle=True)
    while True:
        yield from litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0, drop_last=True)
