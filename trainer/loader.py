"""The loader: batches read ahead by threads of this process into buffers that are used again and again.

Threads and not processes: rows are copied out of mapped files at the speed of memory, and a copy from one process
to another costs ten times that (docs/store.md). Which rows a step reads is a pure function of the step, so batches
may be read in any order and still come out in theirs. Where the student is on a CPU, the threads decode too, each
without helpers: the step's own threads are busy, and a loop that is shared out waits for the last of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import Barrier

import torch

from contract.errors import StoreError
from trainer.batch import Batch, StoredBatch
from trainer.stored import Buffers
from trainer.streams import Streams

NUM_THREADS = 2
NUM_READY = 3


class Loader:
    """The batches of steps start .. stop - 1 on a device; a batch is valid until the next one is asked for."""

    def __init__(self, streams: Streams, start: int, stop: int, device: str) -> None:
        self._steps, self._device = range(start, stop), device
        self._is_host = torch.device(device).type == "cpu"
        # What a step reads is asked for twice: when it is wanted from the disk, and when it is read.
        self._draw = lru_cache(maxsize=4 * NUM_READY)(streams.draw)
        # One slot is the consumer's, the others are being filled or wait for it.
        self._slots = [_Slot(pinned=torch.device(device).type == "cuda") for _ in range(NUM_READY + 1)]

    def __iter__(self) -> Generator[Batch]:
        """Read ahead, and give each batch out in its turn."""
        with _single_threaded(min(NUM_THREADS, len(self._steps))) as threads:
            reading: deque[Future[StoredBatch | Batch]] = deque()
            try:
                reading.extend(threads.submit(self._read, step) for step in self._steps[:NUM_READY])
                for step in self._steps:
                    later = step + NUM_READY  # into the slot of the batch that the consumer has just let go of
                    if later in self._steps:
                        reading.append(threads.submit(self._read, later))
                    found = reading.popleft().result()
                    if isinstance(found, StoredBatch):
                        found = found.to(self._device)
                        self._slot(step).leave()
                    yield found
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _read(self, step: int) -> StoredBatch | Batch:
        # Rows of a later batch are on their way from the disk while this one is copied.
        if step < self._steps.start + NUM_READY:
            self._will_need(step)
        self._will_need(step + NUM_READY)
        slot = self._slot(step)
        slot.enter()
        stream, drawn = self._draw(step)
        found = stream.read(drawn, slot.buffers)
        return found.to(self._device, slot.buffers) if self._is_host else found

    def _will_need(self, step: int) -> None:
        if step in self._steps:
            stream, drawn = self._draw(step)
            with suppress(StoreError):  # of a damaged file: reading it says so, at its own step
                stream.will_need(drawn)

    def _slot(self, step: int) -> _Slot:
        return self._slots[step % len(self._slots)]


@contextmanager
def _single_threaded(num: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose operators use no others."""
    started, own = Barrier(num + 1), torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # or the first operator would take the number that all have
        torch.set_num_threads(1)  # of this thread, and of those that are yet to be made
        started.wait()

    with ThreadPoolExecutor(max(1, num), thread_name_prefix="loader", initializer=start) as threads:
        for _ in range(num):
            threads.submit(int)
        started.wait()
        torch.set_num_threads(own)
        yield threads


class _Slot:
    """Buffers, and the end of the copies that a GPU makes of them."""

    def __init__(self, *, pinned: bool) -> None:
        self.buffers = Buffers(pinned=pinned)
        # `blocking`: a thread that waits for the GPU sleeps, and leaves its core to others.
        self._copied = torch.cuda.Event(blocking=True) if pinned else None  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """The copies out of the buffers have been asked for."""
        if self._copied is not None:
            self._copied.record()

    def enter(self) -> None:
        """Wait until they have been made."""
        if self._copied is not None:
            self._copied.synchronize()
