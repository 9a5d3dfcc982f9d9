"""One shard of 512 rows, a crc32c for each: ours against tensorstore, into new folders every round.

Flushed, ours calls fsync for the shard file and for its commit record, tensorstore (`file_io_sync`) for the file
and for its folder. Not flushed, neither calls it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from peers import Skipped, timing, with_precept
from peers.batches import Array
from peers.timing import spread
from peers.with_precept import FIELD, KEY, REFERENCE

from contract.store import TargetStore

Pair = tuple[TargetStore, Any]


def measure(work: Path, values: Array, rounds: int) -> dict[str, Any]:
    """`values` float16 [512, 197, 768], which lie in memory."""
    try:
        from peers import with_tensorstore as peer
    except ImportError as error:
        raise Skipped(f"not installed: {error}") from error

    folder = work / "write"

    def prepare(flushed: bool) -> Pair:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        store = with_precept.create(folder / "store.zarr", len(values))
        array = peer.create(folder / "peer.zarr", len(values), peer.sharded(peer.CHECKED), sync=flushed)
        os.sync()
        return store, array

    actions: dict[str, Callable[[Pair], object]] = {
        "ours": lambda pair: pair[0].write_shard(KEY, 0, {FIELD: values}),
        "tensorstore": lambda pair: pair[1].write(values).result(),
    }
    _check(actions, prepare(True), values)
    flushed = timing.alternate(actions, partial(prepare, True), rounds)
    with mock.patch("os.fsync"):
        not_flushed = timing.alternate(actions, partial(prepare, False), rounds)
    shutil.rmtree(folder)
    return {"flushed": _compared(flushed), "not_flushed": _compared(not_flushed)}


def _check(actions: Mapping[str, Callable[[Pair], object]], pair: Pair, values: Array) -> None:
    for action in actions.values():
        action(pair)
    store, array = pair
    found = (store.read(REFERENCE, range(len(values)))[FIELD], array.read().result())
    if not all(np.array_equal(rows.view(np.uint16), values.view(np.uint16)) for rows in found):
        raise ValueError("what is read back is not what was written")


def _compared(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    return {
        "over_tensorstore": spread(timing.ratios(seconds["ours"], seconds["tensorstore"])),
        **{f"{name}_ms": spread([1e3 * s for s in figures], 1) for name, figures in seconds.items()},
    }
