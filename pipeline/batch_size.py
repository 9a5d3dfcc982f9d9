"""The best batch that a device has room for, found by trying."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from encoders import FrozenModel
from pipeline.forward import is_out_of_memory

LARGEST = 4096
# On a CPU, where more memory does not mean more speed, a batch larger than the usual one may cost so much more time
# a view than the best. So many sizes in vain end the search, and so does a forward pass of so many seconds.
TOLERANCE = 1.02
FUTILE = 2
LONGEST_S = 4.0
# Of a size's calls the fastest counts, since others use the machine.
NUM_CALLS = 3
# The share of a machine's free memory that a forward pass may take.
SHARE = 0.5


def largest(model: FrozenModel, views: Sequence[Any], device: str, usual: int) -> int:
    """How many views to put through `model` at once on `device`: a power of two, at most `LARGEST`.

    On a GPU as many as there is memory for. On a CPU as many as take half of the free memory and some seconds at
    most, and more than `usual` only if that is as fast. `views` are repeated as often as needed.
    """
    import torch

    if torch.device(device).type == "cuda":
        return _fitting(model, views)
    return _fitting_and_fast(model, views, usual)


def _fitting(model: FrozenModel, views: Sequence[Any]) -> int:
    size = 1
    while size < LARGEST and _time(model, views, 2 * size) is not None:
        size *= 2
    return size


def _fitting_and_fast(model: FrozenModel, views: Sequence[Any], usual: int) -> int:
    best, size, best_s = 1, 1, float("inf")  # seconds a view
    while size <= min(LARGEST, best << FUTILE):
        before = _status("VmRSS")
        _forget_peak()
        times_s = [_time(model, views, size) for _ in range(NUM_CALLS)]
        if None in times_s:
            break
        elapsed_s, taken = min(filter(None, times_s)), _status("VmHWM") - before
        if size <= usual:
            best, best_s = size, elapsed_s / size
        elif elapsed_s / size <= TOLERANCE * best_s:
            best, best_s = size, min(best_s, elapsed_s / size)
        if elapsed_s > LONGEST_S or 2 * taken > SHARE * _memory("MemAvailable"):
            break
        size *= 2
    return best


def _time(model: FrozenModel, views: Sequence[Any], size: int) -> float | None:
    """Seconds of a forward pass of so many views; None if there is no memory for it."""
    import torch

    batch = [views[place % len(views)] for place in range(size)]
    started = time.perf_counter()
    try:
        model(batch)
        return time.perf_counter() - started
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return None


def _forget_peak() -> None:
    """Linux starts to count the peak of this process's memory anew, unless a sandbox has no such thing."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    return _kilobytes("/proc/self/status", name)


def _memory(name: str) -> int:
    return _kilobytes("/proc/meminfo", name)


def _kilobytes(file: str, name: str) -> int:
    """A figure of Linux; 0 elsewhere, where speed alone ends the search."""
    if sys.platform != "linux":
        return 0
    lines = (line.partition(":") for line in Path(file).read_text().splitlines())
    return next(int(value.split()[0]) for key, _, value in lines if key == name)
