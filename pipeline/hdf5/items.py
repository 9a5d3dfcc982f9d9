"""The items of an HDF5 file, and the pairs among them, as a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from contract.errors import DataError
from contract.manifest import ITEMS, MODALITIES, NO_LABEL, SPLITS, Manifest, items_table, pairs_table
from contract.tables import EMPTY
from pipeline.hdf5 import layout
from pipeline.hdf5.contents import Contents


def manifest(contents: Contents, dataset: str) -> Manifest:
    """What the named columns and pairs say; ids are row numbers and splits "train" where nothing is named."""
    named = {target.partition("/")[0] for target in contents.names}
    items = {modality: _items(contents, modality) for modality in MODALITIES if modality in named}
    made = Manifest(
        dataset=dataset,
        protocol=contents.text("protocol", "hdf5"),
        media_root=contents.text("media_root", ""),
        items=items,
        pairs=dict(_pairs(contents, target, items) for target in contents.pairs()),
        num_classes=contents.number("/", "num_classes", 0) or _num_classes(items),
    )
    try:
        made.check()
    except DataError as error:
        raise DataError(f"{contents.path}: {error}") from error
    return made


def _items(contents: Contents, modality: str) -> pa.Table:
    num_rows = _num_rows(contents, modality)
    columns: dict[str, Any] = {"id": [str(row) for row in range(num_rows)], "split": ["train"] * num_rows}
    return items_table(columns | {name: _column(contents, modality, name) for name in contents.columns(modality)})


def _num_rows(contents: Contents, modality: str) -> int:
    """The number of rows that every dataset of the modality has."""
    first, *others = [target for target in contents.names if target.startswith(f"{modality}/")]
    expected = contents.dataset(first).shape[0]
    for target in others:
        count = contents.dataset(target).shape[0]
        if count != expected:
            raise DataError(
                f"{contents.path}: {contents.said(first)} has {expected:,} rows and {contents.said(target)} has "
                f"{count:,}; what belongs to one modality has a row for each item"
            )
    return int(expected)


def _column(contents: Contents, modality: str, name: str) -> pa.ChunkedArray:
    target, type_ = f"{modality}/{name}", ITEMS.field(name).type
    if contents.dataset(target).ndim != 1:
        raise contents.refusal(target, "one value for each item")
    if not pa.types.is_string(type_):
        return _numbers(contents, target, type_, EMPTY[name])
    column = pa.chunked_array(_strings(contents, target, with_numbers=name == "id"), pa.string())
    if name == "split":
        _check_splits(contents, target, column)
    return column


def _numbers(contents: Contents, target: str, type_: pa.DataType, empty: int) -> pa.ChunkedArray:
    dataset, limits = contents.dataset(target), np.iinfo(type_.to_pandas_dtype())
    if dataset.dtype.kind not in "iu":
        raise contents.refusal(target, "whole numbers")
    values = contents.read(target, range(len(dataset)))
    outside = np.flatnonzero((values < empty) | (values > limits.max))
    if len(outside):
        raise DataError(
            f"{contents.path}: {contents.said(target)} is {values[outside[0]]} in row {outside[0]}; expected 0 to "
            f"{limits.max}" + (f", or {empty} for none" if empty < 0 else "")
        )
    return pa.chunked_array([values.astype(limits.dtype)], type_)


def _strings(contents: Contents, target: str, *, with_numbers: bool) -> Iterator[pa.Array]:
    """UTF-8 strings, of variable or fixed length; whole numbers in decimal where they may stand for them."""
    dataset = contents.dataset(target)
    is_number = with_numbers and dataset.dtype.kind in "iu"
    if h5py.check_string_dtype(dataset.dtype) is None and not is_number:
        raise contents.refusal(target, "strings or whole numbers" if with_numbers else "strings")
    for start in range(0, len(dataset), layout.NUM_STRINGS):
        values = contents.read(target, range(start, start + layout.NUM_STRINGS)).tolist()
        strings = [str(value) for value in values] if is_number else _decoded(contents, target, start, values)
        yield pa.array(strings, pa.string())


def _decoded(contents: Contents, target: str, start: int, values: list[bytes]) -> list[str]:
    strings = []
    for row, value in enumerate(values, start):
        try:
            strings.append(value.decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{contents.path}: {contents.said(target)} is {value[:40]!r} in row {row}, not UTF-8; store it as "
                "UTF-8"
            ) from error
    return strings


def _check_splits(contents: Contents, target: str, column: pa.ChunkedArray) -> None:
    for value in column.unique().to_pylist():
        if value not in SPLITS:
            raise DataError(
                f"{contents.path}: {contents.said(target)} is {value!r} in row {column.index(value).as_py()}; "
                f"splits are {', '.join(SPLITS)}"
            )


def _pairs(contents: Contents, target: str, items: Mapping[str, pa.Table]) -> tuple[str, pa.Table]:
    """Pairs [p, 2] as they are; [N], the row of the first modality for each row of the second, as such."""
    first, second = target.partition("/")[2].split("-")
    for modality in (first, second):
        if modality not in items:
            raise DataError(f"{contents.path}: {contents.said(target)}: no {modality} items are named to be paired")
    dataset, num_second = contents.dataset(target), items[second].num_rows
    is_index = dataset.shape == (num_second,)
    if dataset.dtype.kind not in "iu" or not (is_index or dataset.shape[1:] == (2,)):
        raise contents.refusal(
            target,
            f"whole numbers [p, 2], a row of {first} and one of {second}, or [{num_second}], the row of {first} "
            f"for each row of {second}",
        )
    rows = contents.read(target, range(len(dataset)))
    if is_index:
        rows = np.stack([rows, np.arange(len(rows), dtype=rows.dtype)], axis=1)
    for side, modality in enumerate((first, second)):
        bad = np.flatnonzero((rows[:, side] < 0) | (rows[:, side] >= items[modality].num_rows))
        if len(bad):
            raise DataError(
                f"{contents.path}: {contents.said(target)} names {modality} row {rows[bad[0], side]} in row "
                f"{bad[0]}; there are {items[modality].num_rows:,}, counted from 0"
            )
    return pairs_table(first, second, rows.astype(np.int64))


def _num_classes(items: Mapping[str, pa.Table]) -> int:
    labels = [table.column("label").to_numpy() for table in items.values() if table.num_rows]
    return max((int(column.max()) for column in labels), default=NO_LABEL) + 1
