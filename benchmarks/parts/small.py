"""Fields of 1,536, 64 and 4 bytes a row: 256 random rows of 200,000, against fancy indexing of a raw np.memmap."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers import timing, with_precept
from peers.batches import BATCH, Array, Rows
from peers.timing import spread
from peers.with_precept import KEY

from contract.encodings import Float16, Int32
from contract.schema import Field
from contract.store import TargetStore

NUM_ROWS = 200_000
NUM_BATCHES = 20
FIELDS = (
    Field(name="pooled", shape=(768,), encoding=Float16()),
    Field(name="topk", shape=(32,), encoding=Float16()),  # two bytes a value, as the indices of a top-k
    Field(name="scalar", shape=(), encoding=Int32()),
)


def measure(work: Path, rounds: int) -> dict[str, Any]:
    """Each field by itself, by its name."""
    rng = np.random.default_rng(3)
    values: dict[str, Array] = {
        field.name: rng.integers(0, 1000, (NUM_ROWS, *field.shape), dtype=np.int32).astype(field.encoding.kind)
        for field in FIELDS
    }
    store = with_precept.write(work / "small.zarr", values, FIELDS)
    result = {}
    for name, array in values.items():
        array.tofile(work / f"{name}.bin")
        raw = np.asarray(np.memmap(work / f"{name}.bin", array.dtype, "r", shape=array.shape))
        result[name] = _compare(raw, _reader(store, name), rng, rounds)
    return result


def _reader(store: TargetStore, name: str) -> Callable[[Rows], Array]:
    dtype, shape = store.field(f"{KEY}/{name}").arrays[name]
    out = {name: np.empty((BATCH, *shape), dtype)}
    return lambda rows: store.read(f"{KEY}/{name}", rows, out=out)[name]


def _compare(raw: Array, ours: Callable[[Rows], Array], rng: np.random.Generator, rounds: int) -> dict[str, Any]:
    everything = np.arange(NUM_ROWS - NUM_ROWS % BATCH).reshape(-1, BATCH)
    for rows in everything:  # and so everything is in memory
        if not np.array_equal(ours(rows), raw[rows]):
            raise ValueError("other values than the source's")
    actions = {"ours": partial(_read, ours), "floor": partial(_read, raw.__getitem__)}
    seconds = timing.alternate(actions, lambda: list(rng.integers(0, NUM_ROWS, (NUM_BATCHES, BATCH))), rounds)
    per_row = 1e9 / (NUM_BATCHES * BATCH)
    return {
        "over_floor": spread(timing.ratios(seconds["ours"], seconds["floor"])),
        **{f"{name}_ns_per_row": spread([per_row * s for s in seconds[name]], 1) for name in actions},
    }


def _read(read: Callable[[Rows], Array], wanted: list[Rows]) -> None:
    for rows in wanted:
        read(rows)
