"""What was found in the inputs of a modality: a table on the disk, written as it grows and looked up again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from contract.files import replacing
from contract.repeats import Hashes, hashes, is_among, mixed
from contract.tables import chunk_ends, take
from pipeline.checking.inputs import NUM_HASHED, Seen

UNFINISHED = ".unfinished"
CONTENTS = pa.schema(
    [
        ("file", pa.string()),
        ("part", pa.string()),
        ("size_bytes", pa.int64()),  # -1 where there is no file
        ("mtime_ns", pa.int64()),
        ("hash", pa.binary(NUM_HASHED)),
        ("duration_ms", pa.int64()),
        ("reason", pa.string()),  # why it can't be read, "" if it can
    ]
)


class Known:
    """What earlier runs have found, by file, part, size and time of change; 16 bytes a row in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._columns = [table.column(name) for name in Seen._fields]
        self._ends = chunk_ends(self._columns[0])
        keys = np.concatenate([np.empty(0, np.uint64), *(_keys(batch) for batch in table.to_batches())])
        self._order = np.argsort(keys)
        self._keys = keys[self._order]

    def find(self, inputs: pa.RecordBatch) -> list[Seen | None]:
        """What is in each of these inputs (the first four columns of `CONTENTS`); None where that is not known."""
        wanted = _keys(inputs)
        is_known = is_among(wanted, self._keys)
        rows = self._order[np.searchsorted(self._keys, wanted[is_known])]
        columns = [take(column, rows, self._ends) for column in self._columns]
        known = (Seen(*values) for values in zip(*(column.to_pylist() for column in columns), strict=True))
        return [next(known) if one else None for one in is_known]


def read(path: Path) -> pa.Table:
    """All that was written before a run ended, or was killed; memory-mapped."""
    batches = []
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            if stream.schema.equals(CONTENTS):
                for batch in stream:
                    batch.validate(full=True)
                    batches.append(batch)
    except (OSError, pa.ArrowInvalid):  # no file, or one that ends in the middle of a batch
        pass
    return pa.Table.from_batches(batches, CONTENTS)


def keep_unfinished(path: Path) -> None:
    """Put what a killed run has left before what stood there, so that the next one may begin again."""
    unfinished = path.with_suffix(UNFINISHED)
    if unfinished.exists():
        left, before = read(unfinished), read(path)
        with replacing(path) as file, pa.ipc.new_stream(file, CONTENTS) as out:
            out.write_table(left)
            out.write_table(before)
        unfinished.unlink()


@contextmanager
def writing(path: Path) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Appends batches to a new table, which takes the place of the one at `path` in the end."""
    unfinished = path.with_suffix(UNFINISHED)
    with unfinished.open("wb") as file:
        with pa.ipc.new_stream(file, CONTENTS) as out:

            def append(batch: pa.RecordBatch) -> None:
                out.write_batch(batch)
                file.flush()

            yield append
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _keys(batch: pa.RecordBatch) -> Hashes:
    """64 bits of each row's file, part, size and time, uint64 [n]."""
    sizes, times = (batch.column(name).to_numpy().view(np.uint64) for name in ("size_bytes", "mtime_ns"))
    return mixed(hashes(batch.column("file")) ^ mixed(hashes(batch.column("part")) ^ mixed(sizes ^ mixed(times))))
