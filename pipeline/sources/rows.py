"""Rows of a table on disk, one after the other: JSON lines, CSV, TSV and Parquet, told apart by the file's suffix.

A row is a place for error messages, such as `captions.csv: line 7`, and the values of the columns asked for. Of CSV
and TSV they are texts; the first line names the columns. The text is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from contract.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
# The longest line that is read: one without an end would fill the memory.
MAX_LINE_BYTES = 1 << 26
ROWS_PER_READ = 1 << 12

Row = tuple[str, Mapping[str, Any]]


def read_rows(path: Path, columns: Collection[str], *, delimiter: str = "", quoted: bool = True) -> Iterator[Row]:
    """The rows, in the file's order; `DataError` for a broken one, or where a column is not there.

    `delimiter` is for CSV that uses another one than its suffix says; in a file that is not `quoted`, quotation
    marks are characters like others.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet(path, columns)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _json_lines(path, columns)
        elif suffix in DELIMITERS or delimiter:
            yield from _csv(path, columns, delimiter or DELIMITERS[suffix], quoted)
        else:
            raise DataError(f"{path}: what it holds is told by its suffix: .jsonl, .csv, .tsv or .parquet")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from error


def lines(path: Path, *, blank: bool = False) -> Iterator[tuple[str, str]]:
    """The place and the text of every line, line ends apart; those that are blank are left out unless asked for."""
    for number, line in _lines(path):
        if blank or line.strip():
            yield f"{path}: line {number}", line.rstrip("\r\n")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line with its number and its end, decoded on its own so that an error can name it."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}: line {number} is longer than {MAX_LINE_BYTES:,} bytes")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8: {error.reason} at byte {error.start}"
                ) from error


def _json_lines(path: Path, columns: Collection[str]) -> Iterator[Row]:
    for place, line in lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected one object a line, found {type(row).__name__}")
        _check_columns(place, columns, row)
        yield place, {name: row[name] for name in columns}


def _csv(path: Path, columns: Collection[str], delimiter: str, quoted: bool) -> Iterator[Row]:
    # Strict: otherwise a quotation mark that is never closed swallows the rows after it.
    reader = csv.reader(
        (line for _, line in _lines(path)),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    header = [name.strip() for name in _next(path, reader) or []]
    _check_columns(f"{path}: line 1", columns, header)
    places = {name: header.index(name) for name in columns}
    repeated = [name for name in columns if header.count(name) > 1]
    if repeated:
        raise DataError(f"{path}: line 1 names the column `{repeated[0]}` more than once")
    while (values := _next(path, reader)) is not None:
        if not values:
            continue  # a blank line
        if len(values) != len(header):
            raise DataError(
                f"{path}: line {reader.line_num} has {len(values)} values, where the first line names "
                f"{len(header)} columns; a value with the delimiter in it stands in quotes"
            )
        yield f"{path}: line {reader.line_num}", {name: values[place] for name, place in places.items()}


def _next(path: Path, reader: Any) -> list[str] | None:
    try:
        values: list[str] | None = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}") from error
    return values


def _parquet(path: Path, columns: Collection[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(str(path), columns, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(ROWS_PER_READ, columns=list(columns)):
                for row in batch.to_pylist():
                    yield f"{path}: row {number}", row
                    number += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not Parquet that can be read: {error}") from error


def _check_columns(place: str, wanted: Collection[str], found: Collection[str]) -> None:
    for name in wanted:
        if name not in found:
            raise DataError(f"{place}: there is no `{name}`; there are: {', '.join(map(repr, found)) or 'none'}")
