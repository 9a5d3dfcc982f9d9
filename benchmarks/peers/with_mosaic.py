"""mosaicml-streaming: MDS shards, by index. It wants older packages, so it runs as a program of its own.

    python -m peers.with_mosaic SOURCE NUM_ROWS FOLDER      (where `peers.process.REQUIREMENT` is installed)

For every line on stdin it answers with a line of JSON: its version, and the mean seconds of one batch by the floor
and by each way of reading, timed in alternation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from peers.batches import BATCH, DTYPE, SHAPE, Array, Mode, Read, Rows, buffer, check, draw, floor, open_source
from peers.timing import alternate

SHARD_BYTES = 1 << 28


def prepare(folder: Path, source: Array) -> dict[str, Mode]:
    """Write the rows as arrays and as bytes; -> ways to read them."""
    from streaming import LocalDataset, StreamingDataset

    arrays = _write(folder / "arrays", source, f"ndarray:float16:{SHAPE[0]},{SHAPE[1]}", np.array)
    raw = _write(folder / "bytes", source, "bytes", bytes)
    return {
        "StreamingDataset[i], arrays": Mode(read=_read(StreamingDataset(local=arrays, batch_size=1))),
        "LocalDataset[i], arrays": Mode(read=_read(LocalDataset(local=arrays))),
        "LocalDataset[i], bytes": Mode(read=_read(LocalDataset(local=raw))),
    }


def _write(folder: Path, source: Array, encoding: str, convert: Callable[[Array], Any]) -> str:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"x": encoding}, size_limit=SHARD_BYTES) as writer:
        for values in source:
            writer.write({"x": convert(values)})
    return str(folder)


def _read(dataset: Any) -> Read:
    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        batch = out.numpy()
        for position, row in enumerate(rows.tolist()):
            values = dataset[row]["x"]
            batch[position] = (
                values if isinstance(values, np.ndarray) else np.frombuffer(values, DTYPE).reshape(SHAPE)
            )
        return out

    return read


def main() -> None:
    """Prepare, then answer."""
    answers, sys.stdout = sys.stdout, sys.stderr  # the library prints, too
    torch.set_num_threads(1)
    source, folder = open_source(Path(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3])
    rng = np.random.default_rng(1)
    actions = _actions({"floor": Mode(read=floor(source))} | prepare(folder, source), source, rng)
    for _ in sys.stdin:
        # As many rounds as there are actions: each is the first once.
        seconds = alternate(actions, partial(draw, rng, len(source)), rounds=len(actions))
        means = {name: mean(figures) for name, figures in seconds.items()}
        answer = {"version": version("mosaicml-streaming"), "seconds": means}
        print(json.dumps(answer), file=answers, flush=True)


def _actions(
    modes: dict[str, Mode], source: Array, rng: np.random.Generator
) -> dict[str, Callable[[Rows], torch.Tensor]]:
    """Each mode, checked, reading into the same buffer; everything has been read once."""
    out = buffer()
    actions: dict[str, Callable[[Rows], torch.Tensor]] = {}
    for name, mode in modes.items():
        check(mode, source, rng)
        actions[name] = partial(_into, mode.read, out)
        for rows in rng.permutation(len(source)).reshape(-1, BATCH):
            actions[name](rows)
    return actions


def _into(read: Read, out: torch.Tensor, rows: Rows) -> torch.Tensor:
    return read(rows, out)


if __name__ == "__main__":
    main()
