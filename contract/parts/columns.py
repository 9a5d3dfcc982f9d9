"""Rows of Arrow IPC files and streams, as Hugging Face datasets saves them, and of Parquet files."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from contract.parts.content import Part, require_row, require_size
from contract.parts.opened import Opened
from contract.undecodable import UndecodableError

ARROW_MAGIC = b"ARROW1"
PARQUET_MAGIC = b"PAR1"
NUM_OPEN = 16
# Batches and row groups that stay decoded, for each column that is open.
NUM_DECODED = 2
MAX_ROW_GROUP_BYTES = 4 << 30
BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


def batches(file: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The named columns of an Arrow (file or stream) or Parquet file, batch by batch; no others are decoded."""
    known = _SCHEMAS.get(file).names
    missing = [name for name in names if name not in known]
    if missing:
        raise UndecodableError(f"{file.name} has no column {missing[0]!r}; it has {', '.join(known)}")
    try:
        for batch in _batches(file, [known.index(name) for name in dict.fromkeys(names)]):
            yield batch.select(list(names))
    except (pa.ArrowException, OSError) as error:
        raise _SCHEMAS.error(error, file) from error


def arrow_row(file: Path, name: str, number: int) -> Part:
    """The bytes of one row of a column of an Arrow file or stream."""
    return _row(_ARROW, file, name, number)


def parquet_row(file: Path, name: str, number: int) -> Part:
    """The bytes of one row of a column of a Parquet file."""
    return _row(_PARQUET, file, name, number)


class _Column:
    """A column that lies in pieces of `lengths` rows, of which the last few stay decoded."""

    def __init__(
        self, name: str, lengths: Sequence[int], piece: Callable[[int], Any], members: Sequence[str]
    ) -> None:
        self._name, self._members = name, members
        self._starts = [0, *accumulate(lengths)]
        self._piece = lru_cache(NUM_DECODED)(piece)
        self._lock = threading.Lock()

    def row(self, number: int) -> bytes:
        require_row(number, self._starts[-1], f"column {self._name!r}")
        place = bisect_right(self._starts, number) - 1
        with self._lock:
            piece = self._piece(place)
        value = piece[number - self._starts[place]]
        for member in self._members:
            value = value[member] if value.is_valid else value
        if not value.is_valid:
            raise UndecodableError(
                f"row {number:,} of column {self._name!r} is null: its bytes are not in the file"
            )
        content = value.as_buffer()
        require_size(content.size, f"row {number:,} of column {self._name!r}")
        return bytes(content.to_pybytes())


def _row(columns: Opened[_Column], file: Path, name: str, number: int) -> bytes:
    try:
        return columns.get(file, name).row(number)
    except (pa.ArrowException, OSError) as error:
        raise columns.error(error, file) from error


def _open_arrow(file: Path, name: str) -> _Column:
    with _arrow(file) as reader:
        top, *members = _path(file, reader.schema, name)
        index = reader.schema.get_field_index(top)
    reader = _arrow(file, [index])

    def batch(number: int) -> pa.Array:
        return _checked(reader.get_batch(number)).column(0)

    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        lengths = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
        return _Column(name, lengths, batch, members)
    pieces = [_checked(piece).column(0) for piece in reader]
    return _Column(name, [len(piece) for piece in pieces], pieces.__getitem__, members)


def _open_parquet(file: Path, name: str) -> _Column:
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file, memory_map=True)
    _, *members = _path(file, opened.schema_arrow, name)
    groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]

    def row_group(number: int) -> pa.ChunkedArray:
        num_bytes = groups[number].total_byte_size
        if num_bytes > MAX_ROW_GROUP_BYTES:
            raise UndecodableError(
                f"a row group of {file.name} has {num_bytes:,} bytes, more than are held at once "
                f"({MAX_ROW_GROUP_BYTES:,}): write it in smaller ones"
            )
        return opened.read_row_group(number, columns=[name], use_threads=False).column(0)

    return _Column(name, [group.num_rows for group in groups], row_group, members)


def _path(file: Path, schema: pa.Schema, name: str) -> list[str]:
    """The column, and the members of the struct that it is, down to one that holds bytes."""
    tops = [top for top in schema.names if f"{name}.".startswith(f"{top}.")]
    if not tops:
        raise UndecodableError(f"{file.name} has no column {name!r}; it has {', '.join(schema.names)}")
    top = max(tops, key=len)
    members = name.removeprefix(top).split(".")[1:]
    kind = schema.field(top).type
    for member in members:
        if not pa.types.is_struct(kind) or kind.get_field_index(member) < 0:
            raise UndecodableError(f"{file.name} has no column {name!r}: {top!r} is {kind}")
        kind = kind.field(member).type
    if not any(holds_bytes(kind) for holds_bytes in BYTES):
        raise UndecodableError(
            f"column {name!r} of {file.name} holds {kind}, and not the bytes of images or sounds"
        )
    return [top, *members]


def _batches(file: Path, indices: Sequence[int]) -> Iterator[pa.RecordBatch]:
    if _magic(file) == PARQUET_MAGIC:
        import pyarrow.parquet

        opened = pyarrow.parquet.ParquetFile(file, memory_map=True)
        names = [opened.schema_arrow.names[index] for index in indices]
        yield from opened.iter_batches(columns=names, use_threads=False)
        return
    reader = _arrow(file, indices)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        yield from (_checked(reader.get_batch(number)) for number in range(reader.num_record_batches))
    else:
        yield from map(_checked, reader)


def _schema(file: Path, _: str) -> pa.Schema:
    if _magic(file) == PARQUET_MAGIC:
        import pyarrow.parquet

        return pyarrow.parquet.read_schema(file, memory_map=True)
    return _arrow(file).schema


def _arrow(file: Path, indices: Sequence[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=indices)
    is_file = _magic(file).startswith(ARROW_MAGIC[:4])
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.memory_map(str(file)), options=options)


def _magic(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A damaged one is an exception and not a crash."""
    batch.validate(full=True)
    return batch


_SCHEMAS: Opened[pa.Schema] = Opened("Arrow or Parquet file", NUM_OPEN, _schema)
_ARROW: Opened[_Column] = Opened("Arrow file", NUM_OPEN, _open_arrow)
_PARQUET: Opened[_Column] = Opened("Parquet file", NUM_OPEN, _open_parquet)
