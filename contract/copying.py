"""Large copies, shared out to threads: one alone does not fill the memory's bandwidth on most machines.

NumPy lets other threads run while it copies, and a checksum of one row is taken while another is being copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

NUM_THREADS = max(1, min(4, os.cpu_count() or 1))
# Below this, handing work over costs more than it saves.
WORTH_SHARING_BYTES = 8 << 20

# Of the process that made it: threads do not survive a fork.
_pools: dict[int, ThreadPoolExecutor] = {}


def shares(number: int) -> list[slice]:
    """`number` things in one slice for each thread."""
    bounds = [number * share // NUM_THREADS for share in range(NUM_THREADS + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds) if stop > start]


def together(action: Callable[[slice], None], parts: list[slice]) -> None:
    """Run `action` on every part at the same time; back when all have ended, with the first error there was."""
    running = [_pool().submit(action, part) for part in parts[1:]]
    try:
        for part in parts[:1]:
            action(part)
    finally:
        errors = [future.exception() for future in running]
    for error in errors:
        if error is not None:
            raise error


def _pool() -> ThreadPoolExecutor:
    process = os.getpid()
    if process not in _pools:
        _pools[process] = ThreadPoolExecutor(NUM_THREADS - 1 or 1, thread_name_prefix="copy")
    return _pools[process]
