"""Batches out of files that are not in memory: ours, told of the next batch, against 8 threads of preadv."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import batches, timing, with_precept
from peers.batches import BATCH, ROW_BYTES, Rows
from peers.timing import spread
from peers.with_precept import KEY, REFERENCE

from contract.store import TargetStore

NUM_BATCHES = 4
NUM_THREADS = 8
# A store as it is some time into a run, its shards opened, and the batches that are to be read.
Turn = tuple[TargetStore, list[Rows]]


def measure(work: Path, num_rows: int, rounds: int) -> dict[str, Any]:
    """Fresh random rows every round, the same for both, each from files of its own."""
    raw, path = work / "source.bin", work / "store.zarr"
    files = [raw, *(file for file in path.rglob("*") if file.is_file())]
    rng, out = np.random.default_rng(2), batches.buffer()
    resident = []

    def prepare() -> Turn:
        gc.collect()  # a page that is mapped can't be dropped
        store = TargetStore.open(path)
        opened = [store.shard_rows(KEY, shard).start for shard in range(store.num_shards(KEY))]
        store.read(REFERENCE, opened)
        drop_from_memory(files)
        resident.append(sum(resident_bytes(file) for file in files) / sum(file.stat().st_size for file in files))
        rows = rng.permutation(np.setdiff1d(np.arange(num_rows), opened))[: NUM_BATCHES * BATCH]
        return store, list(rows.reshape(NUM_BATCHES, BATCH))

    with raw.open("rb") as file, ThreadPoolExecutor(NUM_THREADS) as pool:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # read-ahead made it slower
        actions: dict[str, Callable[[Turn], object]] = {
            "ours": partial(_ours, out),
            "preadv": partial(_preadv, pool, file.fileno(), out),
        }
        _check(actions, prepare(), out)
        seconds = timing.alternate(actions, prepare, rounds)
    return {
        "over_preadv": spread(timing.ratios(seconds["ours"], seconds["preadv"])),
        **{f"{name}_ms": spread([1e3 / NUM_BATCHES * s for s in seconds[name]], 1) for name in actions},
        "resident_share_after_drop": round(max(resident), 4),
    }


def _check(actions: Mapping[str, Callable[[Turn], object]], turn: Turn, out: torch.Tensor) -> None:
    found = []
    for action in actions.values():
        action(turn)
        found.append(out.clone())
    if not torch.equal(*found):
        raise ValueError("the last batch is not the same both ways")


def _ours(out: torch.Tensor, turn: Turn) -> None:
    store, wanted = turn
    read = with_precept.reader(store)
    store.will_need(REFERENCE, wanted[0])
    for number, rows in enumerate(wanted):
        if number + 1 < len(wanted):
            store.will_need(REFERENCE, wanted[number + 1])
        read(rows, out)


def _preadv(pool: ThreadPoolExecutor, file: int, out: torch.Tensor, turn: Turn) -> None:
    batch = out.numpy()

    def read(position: int, row: int) -> int:
        return os.preadv(file, [batch[position]], row * ROW_BYTES)

    for rows in turn[1]:
        if sum(pool.map(read, range(BATCH), rows.tolist())) != BATCH * ROW_BYTES:
            raise OSError("preadv read less than it was asked for")


def drop_from_memory(files: list[Path]) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes(path: Path) -> int:
    """How much of a file is in memory, by mincore."""
    if not path.stat().st_size:
        return 0
    with path.open("rb") as file:
        content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    pages = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mincore(
        ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(content)), ctypes.c_void_p(pages.ctypes.data)
    ):
        raise OSError(ctypes.get_errno(), "mincore")
    return int((pages & 1).sum()) * mmap.PAGESIZE
