"""Rows of the manifest into what the encoder is shown, ahead of it: in threads, or wherever `Decoder` runs."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from contract import parts
from contract.manifest import Manifest, Rows
from contract.paths import inside
from contract.store import Quarantined
from contract.views import Item, UndecodableError, View
from pipeline.settings import Views

Array = npt.NDArray[Any]

# Read ahead of decoding, so that time spent waiting for a disk is known as such; sounds are not read whole.
READ_AHEAD_BYTES = 4 << 20
BATCHES_AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One batch of rows.

    `good` are those that could be decoded, as places in the batch; `views` has all their views, one row's after
    the other, and `parameters` float32 [len(views), p] what was drawn for each. `reading_s` and `decoding_s` are
    summed over threads.
    """

    num_rows: int
    good: list[int]
    views: list[Any]
    parameters: Array
    quarantined: list[Quarantined]
    reading_s: float
    decoding_s: float


class Pending(Protocol):
    """A batch that is being decoded somewhere."""

    def result(self) -> Decoded:
        """Wait for it."""

    def cancel(self) -> None:
        """Nobody will ask for it any more."""


class Decoders(Protocol):
    """Whoever decodes."""

    def num_ahead(self, rows_per_batch: int) -> int:
        """How many batches to have under way, so that none has to be waited for."""

    def submit(self, rows: range | Rows, num_views: int) -> Pending:
        """Begin to decode `num_views` augmented views of these rows, beside the evaluation view."""


class Decoder:
    """Decodes items of one modality in its own threads."""

    def __init__(self, manifest: Manifest, modality: str, view: View, views: Views, num_threads: int) -> None:
        self._table = manifest.items[modality].select(["id", "file", "part", "start_ms", "length_ms", "text"])
        self._root = Path(manifest.media_root)
        self._view, self._augmentation, self._seed = view, views.of(modality), views.seed
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def num_ahead(self, rows_per_batch: int) -> int:
        """Some batches, and more of those that are too small to keep every thread busy."""
        return max(BATCHES_AHEAD, -(-2 * self._num_threads // rows_per_batch))

    def submit(self, rows: range | Rows, num_views: int) -> Pending:
        """Begin to decode a batch."""
        # Taking scattered rows takes time in proportion to the whole table: 5 ms for a million items.
        taken = self._table.slice(rows.start, len(rows)) if isinstance(rows, range) else self._table.take(rows)
        entries = zip(rows, taken.to_pylist(), strict=True)
        return _Batch([self._threads.submit(self._decode, int(row), entry, num_views) for row, entry in entries])

    def _decode(self, row: int, entry: dict[str, Any], num_views: int) -> _One:
        started = read = time.perf_counter()
        file = Path()
        try:
            if entry["file"]:
                file = inside(self._root, entry["file"])
                _read_ahead(file, entry["part"])
                read = time.perf_counter()
            item = Item(**entry | {"file": file})
            if num_views:
                view: Any = self._view  # of a modality that has augmentations
                shown, parameters = view.load_views(item, self._augmentation, self._seed, num_views)
            else:
                shown, parameters = [self._view.load(item)], np.empty((1, 0))
        except UndecodableError as error:
            bad = Quarantined(row=row, id=entry["id"], file=_named(entry), reason=str(error))
            return _One([], np.empty((0, 0)), bad, read - started, time.perf_counter() - read)
        return _One(shown, parameters, None, read - started, time.perf_counter() - read)


@dataclass(frozen=True)
class _One:
    """One item's views, or why it has none."""

    views: list[Any]
    parameters: Array
    quarantined: Quarantined | None
    reading_s: float
    decoding_s: float


class _Batch:
    def __init__(self, futures: Sequence[Future[_One]]) -> None:
        self._futures = futures

    def cancel(self) -> None:
        for future in self._futures:
            future.cancel()

    def result(self) -> Decoded:
        items = [future.result() for future in self._futures]
        good = [place for place, one in enumerate(items) if one.quarantined is None]
        return Decoded(
            num_rows=len(items),
            good=good,
            views=[view for place in good for view in items[place].views],
            parameters=np.concatenate([items[place].parameters for place in good]) if good else np.empty((0, 0)),
            quarantined=[one.quarantined for one in items if one.quarantined is not None],
            reading_s=sum(one.reading_s for one in items),
            decoding_s=sum(one.decoding_s for one in items),
        )


def _read_ahead(file: Path, part: str) -> None:
    """Bring an item into the page cache; what is wrong with its file, the view will say.

    A file that is none, such as a pipe, is refused here: whoever opens one to read may wait for ever.
    """
    try:
        number = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        about = os.fstat(number)
        if not stat.S_ISREG(about.st_mode):
            raise UndecodableError("not a regular file")
        place = parts.RANGE.fullmatch(part)
        first, count = (int(place[1]), int(place[2])) if place else (0, 0 if part else about.st_size)
        os.pread(number, min(count, READ_AHEAD_BYTES), first)
    except OSError:
        return
    finally:
        os.close(number)


def _named(entry: dict[str, Any]) -> str:
    return " ".join(str(entry[name]) for name in ("file", "part") if entry[name])
