"""webdataset: tar files of 512 rows, read one after the other, with and without a shuffle buffer.

It has no random access any more (1.0 came without `wids`), so a row's bytes go through tarfile in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset

from peers.batches import BATCH, BLOCK, DTYPE, SHAPE, Array, Mode, Read, Rows

SHUFFLE_BUFFER = 1000


def prepare(folder: Path, source: Array) -> dict[str, Mode]:
    """Write the rows' bytes, undecoded being the fastest; -> ways to read them."""
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=BLOCK, verbose=0) as writer:
        for row, values in enumerate(source):
            writer.write({"__key__": f"{row:08d}", "bin": values.tobytes()})
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def epoch() -> Any:
        return webdataset.WebDataset(urls, shardshuffle=len(urls))

    # Across the end of an epoch, and filled before the first row: or emptying it would pass for speed.
    shuffled = webdataset.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER)
    return {
        "sequential": Mode(read=_read(_endless(epoch)), own_order=True),
        f"shuffle buffer of {SHUFFLE_BUFFER}": Mode(read=_read(shuffled(_endless(epoch))), own_order=True),
    }


def _read(samples: Iterable[dict[str, Any]]) -> Read:
    stream = iter(samples)

    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position in range(BATCH):
            batch[position] = np.frombuffer(next(stream)["bin"], DTYPE).reshape(SHAPE)
        return out

    return read


def _endless(epoch: Callable[[], Iterable[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    while True:
        yield from epoch()
