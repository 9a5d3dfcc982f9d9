"""A manifest written as it is read from its source: batches of items and pairs that go to the disk at once."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np
import pyarrow as pa

from contract.errors import DataError
from contract.manifest import MODALITIES, Manifest, Rows, items_table, pair_kind
from contract.tables import ROWS_PER_BATCH


class Source(Protocol):
    """How a kind of dataset is read from a folder; see pipeline/sources."""

    def fill(self, builder: ManifestBuilder, root: Path) -> None:
        """Add its items and pairs, in an order that never changes."""


def build(source: Source, dataset: str, root: Path, say: Callable[[str], None] | None = None) -> Manifest:
    """Read the dataset that lies at `root`; raise `DataError` if it is missing or broken.

    `say` is called with each line that the source notes, such as what it left out.
    """
    with ManifestBuilder(dataset, root, say) as builder:
        source.fill(builder, root)
        manifest = builder.finish()
    manifest.check()
    return manifest


class ManifestBuilder:
    """What a source fills: items of each modality in order, and pairs of their rows.

    A source adds batches of any size and keeps none of them, so that memory does not grow with the dataset:

        rows = builder.items("image", id=[...], file=[...], split=[...])     # range of row numbers
        builder.pairs("image", "text", [(rows[0], 0), ...])                  # int64 [n, 2] or a list
        builder.num_classes = 10
        builder.note("tiny.csv: 3 of 40 rows have no sound and are left out, the first in line 7")
    """

    def __init__(self, dataset: str, root: Path, say: Callable[[str], None] | None = None) -> None:
        self.dataset, self.root = dataset, root
        self._say = say or (lambda line: None)
        self.protocol = dataset
        self.num_classes = 0
        self._tables: dict[str, _Growing] = {}
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def items(self, modality: str, **columns: Sequence[Any]) -> range:
        """Add items: columns of `ITEMS`, of which `id` and `split` are required; returns their row numbers."""
        assert modality in MODALITIES, modality
        return self._table(f"items.{modality}").add(items_table(columns))

    def pairs(self, first: str, second: str, rows: Sequence[tuple[int, int]] | Rows) -> None:
        """Add (row of `first`, row of `second`) pairs; the items may come later."""
        kind = pair_kind(first, second)
        array = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
        columns = {first: array[:, 0], second: array[:, 1]}
        self._table(f"pairs.{kind}").add(pa.table({name: columns[name] for name in kind.split("-")}))

    def note(self, line: str) -> None:
        """Say what the user should know: what was left out or taken otherwise than it stands there, with counts."""
        self._say(line)

    def num_rows(self, modality: str) -> int:
        """How many items of the modality have been added."""
        table = self._tables.get(f"items.{modality}")
        return table.num_rows if table else 0

    def finish(self) -> Manifest:
        """The manifest, memory-mapped from files that have no name and are gone when it is."""
        tables = {name: table.open() for name, table in self._tables.items()}
        return Manifest(
            dataset=self.dataset,
            protocol=self.protocol,
            items={m: tables[f"items.{m}"] for m in MODALITIES if f"items.{m}" in tables},
            pairs={name[6:]: table for name, table in tables.items() if name.startswith("pairs.")},
            media_root=str(self.root.resolve()),
            num_classes=self.num_classes,
        )

    def _table(self, name: str) -> _Growing:
        if name not in self._tables:
            file = tempfile.TemporaryFile(prefix="precept-manifest-")  # noqa: SIM115 - closed with the others
            self._tables[name] = _Growing(self._files.enter_context(file))
        return self._tables[name]


class _Growing:
    """A table on its way to the disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self.num_rows = 0

    def add(self, table: pa.Table) -> range:
        """Append the rows; returns their numbers."""
        rows = range(self.num_rows, self.num_rows + table.num_rows)
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        self.num_rows = rows.stop
        if self._num_waiting >= ROWS_PER_BATCH:
            self._flush()
        return rows

    def open(self) -> pa.Table:
        """All rows, memory-mapped."""
        with _room():
            self._flush()
            assert self._writer is not None
            self._writer.close()
            self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting).combine_chunks()
            with _room():
                if self._writer is None:
                    self._writer = pa.ipc.new_file(self._file, table.schema)
                self._writer.write_table(table, max_chunksize=ROWS_PER_BATCH)
            self._waiting, self._num_waiting = [], 0


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{tempfile.gettempdir()}: a manifest can't be written there: {error.strerror or error}; "
            "make room, or set TMPDIR to a folder on another disk"
        ) from error
