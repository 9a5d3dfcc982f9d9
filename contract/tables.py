"""The Arrow tables of a manifest: items of a modality, pairs of two; what they hold, hash to, and lie in.

Tables are memory-mapped, never lists of Python objects: a hundred million rows open at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract import fingerprint

NO_LABEL = -1
UNKNOWN_SIZE = -1

ITEMS = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("text", pa.string()),
        ("label", pa.int32()),
        ("language", pa.string()),
        ("split", pa.string()),
        ("size_bytes", pa.int64()),
    ]
)
CHECKSUM_BLOCK_BYTES = 1 << 24

Rows = npt.NDArray[np.int64]
Segments = Mapping[str, Sequence[Mapping[str, int]]]  # table -> rows and crc32c of each of its files


def pair_kind(first: str, second: str) -> str:
    """The name of the pairs of two modalities: image comes first, text last."""
    order = ("image", "audio", "text")
    return "-".join(sorted((first, second), key=order.index))


def items_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """A table with the schema `ITEMS` from some of its columns; those left out hold "", -1 or -1.

    `id` and `split` are required.
    """
    num_rows = len(columns["id"])
    empty = {"file": "", "text": "", "label": NO_LABEL, "language": "", "size_bytes": UNKNOWN_SIZE}
    filled = {name: columns[name] if name in columns else [empty[name]] * num_rows for name in ITEMS.names}
    return pa.table(filled, schema=ITEMS)


def pairs_table(first: str, second: str, rows: Sequence[tuple[int, int]] | Rows) -> tuple[str, pa.Table]:
    """The pair kind and the table for (row of first, row of second) pairs."""
    array = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
    return pair_kind(first, second), pa.table({first: array[:, 0], second: array[:, 1]})


def segment_file(name: str, number: int) -> str:
    """The file of a segment of the table `name`."""
    return f"{name}.arrow" if number == 0 else f"{name}.{number}.arrow"


def dump(table: pa.Table) -> bytes:
    """A table as the content of a file."""
    sink = pa.BufferOutputStream()
    # `combine_chunks` so that equal tables are equal files, however they were put together.
    with pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table.combine_chunks())
    content: bytes = sink.getvalue().to_pybytes()
    return content


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


def file_checksum(find: Callable[[str, int], Path], name: str, checksum: int) -> int | None:
    """The file's crc32c, None without a file."""
    found = 0
    try:
        with find(name, checksum).open("rb") as file:
            while block := file.read(CHECKSUM_BLOCK_BYTES):
                found = google_crc32c.extend(found, block)
    except OSError:
        return None
    return found


def content_fingerprint(table: pa.Table) -> str:
    """Over names and values, column by column."""
    # Arrow's buffers of equal values may differ (offsets of a slice, chunks): hash lengths and values instead.
    parts: list[bytes | memoryview] = []
    for name in table.column_names:
        chunks = [chunk for chunk in table.column(name).chunks if len(chunk)]
        if pa.types.is_string(table.column(name).type):
            texts = [_text(chunk) for chunk in chunks]
            parts += [name.encode(), *(lengths for lengths, _ in texts), *(text for _, text in texts)]
        else:
            values = [chunk.to_numpy(zero_copy_only=False) for chunk in chunks]
            parts += [name.encode(), *(one.astype(one.dtype.newbyteorder("<")).tobytes() for one in values)]
    return fingerprint.of_bytes(*parts)


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


def _text(chunk: pa.StringArray) -> tuple[bytes, memoryview]:
    """The lengths of its strings, as int64, and their UTF-8, one after the other."""
    _, offsets, text = chunk.buffers()
    bounds = np.frombuffer(offsets, np.int32, count=len(chunk) + 1, offset=4 * chunk.offset)
    return np.diff(bounds).astype("<i8").tobytes(), memoryview(text or b"")[bounds[0] : bounds[-1]]
