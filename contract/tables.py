"""The Arrow tables of a manifest: items of a modality, pairs of two; what they hold, hash to, and lie in.

Tables are memory-mapped, never lists of Python objects: a hundred million rows open at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract import fingerprint

NO_LABEL = -1
UNKNOWN_SIZE = -1
TO_THE_END = -1

ITEMS = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("part", pa.string()),
        ("start_ms", pa.int32()),
        ("length_ms", pa.int32()),
        ("text", pa.string()),
        ("label", pa.int32()),
        ("language", pa.string()),
        ("split", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)
# What a column holds that a dataset has nothing to say in: a whole file, from its start to its end.
EMPTY: Mapping[str, Any] = {
    "file": "",
    "part": "",
    "start_ms": 0,
    "length_ms": TO_THE_END,
    "text": "",
    "label": NO_LABEL,
    "language": "",
    "size_bytes": UNKNOWN_SIZE,
}
# What is held of a table while it is read or written, and a record batch of its file.
ROWS_PER_BATCH = 1 << 16

Rows = npt.NDArray[np.int64]
Segments = Mapping[str, Sequence[Mapping[str, int]]]  # table -> rows and crc32c of each of its files


def pair_kind(first: str, second: str) -> str:
    """The name of the pairs of two modalities: image comes first, text last."""
    order = ("image", "audio", "text")
    return "-".join(sorted((first, second), key=order.index))


def items_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """A table with the schema `ITEMS` from some of its columns; those left out hold what `EMPTY` says.

    `id` and `split` are required.
    """
    num_rows = len(columns["id"])
    filled = {
        name: columns[name]
        if name in columns
        else pa.repeat(pa.scalar(EMPTY[name], ITEMS.field(name).type), num_rows)
        for name in ITEMS.names
    }
    return pa.table(filled, schema=ITEMS)


def pairs_table(first: str, second: str, rows: Sequence[tuple[int, int]] | Rows) -> tuple[str, pa.Table]:
    """The pair kind and the table for (row of first, row of second) pairs."""
    array = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    return pair_kind(first, second), pa.table({first: array[:, 0], second: array[:, 1]})


def segment_file(name: str, number: int) -> str:
    """The file of a segment of the table `name`."""
    return f"{name}.arrow" if number == 0 else f"{name}.{number}.arrow"


@dataclass(frozen=True, eq=False)
class TableFile:
    """A table as the content of a file, which is written in record batches and never held."""

    table: pa.Table

    def write(self, file: IO[bytes]) -> None:
        """Equal tables are equal files, however they were put together."""
        with pa.ipc.new_file(file, self.table.schema) as out:
            for start in range(0, self.table.num_rows, ROWS_PER_BATCH):
                columns = self.table.slice(start, ROWS_PER_BATCH).columns
                # Copied, since the buffers of a slice are padded to other lengths.
                arrays = [pa.concat_arrays(column.chunks) for column in columns]
                out.write_batch(pa.record_batch(arrays, schema=self.table.schema))

    @cached_property
    def crc32c(self) -> int:
        """The checksum of the file."""
        file = _Checksum()
        self.write(cast(IO[bytes], file))
        return file.value


def open_table(name: str, segments: Sequence[Mapping[str, int]], find: Callable[[str, int], Path]) -> pa.Table:
    """The table `name` from the files of its segments, memory-mapped; ValueError for another one."""
    parts = []
    for number, segment in enumerate(segments):
        path = find(segment_file(name, number), segment["crc32c"])
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if table.num_rows != segment["rows"]:
            raise ValueError(f"{path.name} has {table.num_rows} rows, manifest.json says {segment['rows']}")
        if not table.schema.equals(_schema(name, table.schema.names)):
            raise ValueError(f"{path.name} has other columns: {table.schema.names}")
        parts.append(table)
    return pa.concat_tables(parts)


def take(column: pa.ChunkedArray, rows: Sequence[int] | Rows, ends: Rows | None = None) -> pa.Array:
    """The values of these rows; Arrow's own `take` copies a whole column of numbers first.

    `ends` is what `chunk_ends` says, for whoever asks often.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    if not len(wanted):
        return pa.array([], column.type)
    order = np.argsort(wanted, kind="stable")
    ascending = wanted[order]
    stops = chunk_ends(column) if ends is None else ends
    numbers, firsts = np.unique(np.searchsorted(stops, ascending, side="right"), return_index=True)
    found = []
    for number, part in zip(numbers, np.split(ascending, firsts[1:]), strict=True):
        chunk = column.chunk(number)
        found.append(chunk.take(pa.array(part - (stops[number] - len(chunk)))))
    places = np.empty(len(wanted), np.int64)
    places[order] = np.arange(len(wanted))
    return pa.concat_arrays(found).take(pa.array(places))


def chunk_ends(column: pa.ChunkedArray) -> Rows:
    """The row after the last one of each chunk, int64 [chunks]."""
    return np.cumsum([len(chunk) for chunk in column.chunks], dtype=np.int64)


def content_fingerprint(table: pa.Table) -> str:
    """Over names and values, column by column, whatever the chunks; a block is in memory at a time."""
    return fingerprint.of_stream(_contents(table))


def blocks(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """A column in pieces of at most `ROWS_PER_BATCH` rows, none of them copied."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), ROWS_PER_BATCH):
            yield chunk.slice(start, ROWS_PER_BATCH)


def utf8(strings: pa.StringArray) -> tuple[npt.NDArray[np.int32], memoryview]:
    """Where each string starts and the last ends in a buffer, int32 [n + 1]; the bytes of all of them."""
    _, offsets, text = strings.buffers()
    bounds = np.frombuffer(offsets, np.int32, count=len(strings) + 1, offset=4 * strings.offset)
    return bounds, memoryview(text or b"")[bounds[0] : bounds[-1]]


def as_mask(values: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Bool [n]."""
    mask: npt.NDArray[np.bool_] = values.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _schema(name: str, columns: Sequence[str]) -> pa.Schema:
    """That of a table; the two columns of pairs stand in either order."""
    kind = name.removeprefix("pairs.")
    if kind == name:
        return ITEMS
    names = columns if sorted(columns) == sorted(kind.split("-")) else kind.split("-")
    return pa.schema([(modality, pa.int64()) for modality in names])


def _contents(table: pa.Table) -> Iterator[bytes | memoryview]:
    # Arrow's buffers of equal values may differ (offsets of a slice, chunks): hash lengths and values instead.
    for name in table.column_names:
        yield name.encode()
        column = table.column(name)
        if pa.types.is_string(column.type):
            yield from (np.diff(utf8(block)[0]).astype("<i8").data.cast("B") for block in blocks(column))
            yield from (utf8(block)[1] for block in blocks(column))
        else:
            for block in blocks(column):
                values = block.to_numpy(zero_copy_only=False)
                yield values.astype(values.dtype.newbyteorder("<"), copy=False).data.cast("B")


class _Checksum(io.RawIOBase):
    """A file of which nothing is kept but its checksum."""

    value = 0

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.value = google_crc32c.extend(self.value, bytes(content))
        return len(content)
