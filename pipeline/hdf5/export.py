"""A finished store as one HDF5 file, for code that reads those."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tqdm import tqdm

from contract import config
from contract.errors import DataError, StoreError
from contract.files import PARTIAL
from contract.manifest import ITEMS
from contract.schema import Field
from contract.store import TargetStore
from pipeline.hdf5 import layout
from pipeline.plan import gigabytes, require_room


def export(store: TargetStore, path: Path) -> str:
    """Write the store to a new file at `path`, whole or not at all; returns what was written, in words."""
    _require_new(path)
    _require_exportable(store)
    sizes = {
        f"{key}/{field.name}": _num_bytes(store, key, field)
        for key, fieldset in store.fieldsets.items()
        for field in fieldset.fields
    }
    require_room(path, sum(sizes.values()))
    partial = path.with_name(f"{path.name}{PARTIAL}")
    try:
        with tqdm(total=sum(sizes.values()), desc=path.name, unit="B", unit_scale=True, mininterval=0.5) as bar:
            _write(store, partial, bar)
        _flush(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # the two that h5py raises, for a full disk among others
        raise StoreError(f"{path}: can't be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    fields = f"{len(sizes)} {'field' if len(sizes) == 1 else 'fields'}"
    return f"{path}: dataset {store.manifest.dataset}, {fields}, {gigabytes(path.stat().st_size)}"


def _require_new(path: Path) -> None:
    if path.exists():
        raise DataError(f"{path} exists; remove it, or give another name")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent} to write it in; make it first")


def _require_exportable(store: TargetStore) -> None:
    if not store.fieldsets:
        raise StoreError(f"{store.path} has no FieldSet yet; `pipeline precompute` makes some")
    store.require_complete(store.fieldsets)
    for key, fieldset in store.fieldsets.items():
        taken = [key] if fieldset.name in layout.COLUMNS else []
        taken += [f"{key}/{one.name}" for one in fieldset.fields if one.name == layout.QUARANTINED]
        if taken:
            raise StoreError(
                f"{store.path}: {taken[0]} would stand where the file has a dataset of its own "
                f"({', '.join([*layout.COLUMNS, layout.QUARANTINED])}); compute it under another name"
            )


def _write(store: TargetStore, path: Path, bar: Any) -> None:
    manifest = store.manifest
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs[layout.FORMAT_ATTRIBUTE] = layout.FORMAT
        for name in ("dataset", "protocol", "media_root", "num_classes"):
            file.attrs[name] = getattr(manifest, name)
        for modality in manifest.modalities:
            group = file.create_group(modality, track_order=True)
            for name in layout.COLUMNS:
                _write_column(group, modality, name, manifest.items[modality])
        for key in store.fieldsets:
            _write_fieldset(file, store, key, bar)
        pairs = file.create_group(layout.PAIRS, track_order=True)
        for kind, table in manifest.pairs.items():
            _write_pairs(pairs, kind, table)


def _write_column(group: Any, modality: str, name: str, items: pa.Table) -> None:
    column, type_ = items.column(name), ITEMS.field(name).type
    is_string = pa.types.is_string(type_)
    dataset = group.create_dataset(
        name, (len(column),), h5py.string_dtype() if is_string else type_.to_pandas_dtype()
    )
    for start in range(0, len(column), layout.NUM_STRINGS):
        values = column.slice(start, layout.NUM_STRINGS)
        if not is_string:
            dataset[start : start + len(values)] = values.to_numpy()
            continue
        strings = values.to_pylist()
        for offset, string in enumerate(strings):
            if "\0" in string:
                sample = items.column("id")[start + offset].as_py()
                raise DataError(
                    f"{modality} {name} of sample {sample!r} holds a NUL character, which no HDF5 string can; "
                    "mend the dataset"
                )
        dataset[start : start + len(strings)] = strings


def _write_fieldset(file: Any, store: TargetStore, key: str, bar: Any) -> None:
    fieldset, num_rows = store.fieldsets[key], store.manifest.num_rows(store.fieldsets[key].modality)
    group = file.create_group(key, track_order=True)
    group.attrs["provenance"] = _json(fieldset.provenance)
    group.attrs["num_views"] = fieldset.num_views
    group.attrs["batch_size"] = fieldset.batch_size
    views = (fieldset.views_per_row,) if fieldset.num_views else ()
    mask = np.zeros(num_rows, bool)
    mask[[entry.row for entry in store.quarantined(key)]] = True
    for field in fieldset.fields:
        dataset = group.create_dataset(field.name, (num_rows, *views, *field.shape), _dtype(field))
        dataset.attrs["about"] = _json(field.about)
        dataset.attrs["encoding"] = _json(config.tree(field.encoding))
        for shard in range(store.num_shards(key)):
            for rows in layout.blocks(store.shard_rows(key, shard), _row_bytes(store, key, field)):
                values = _values(store, key, field, rows).reshape(len(rows), *views, *field.shape)
                values[mask[rows.start : rows.stop]] = 0  # stored zeros are not zeros in every encoding
                dataset[rows.start : rows.stop] = values
                bar.update(values.nbytes)
    group.create_dataset(layout.QUARANTINED, data=mask)


def _values(store: TargetStore, key: str, field: Field, rows: range) -> npt.NDArray[Any]:
    """Decoded values [rows x views, *shape], once the checksums of what was stored have been found right."""
    num_views = store.fieldsets[key].views_per_row
    flat, views = np.repeat(np.asarray(rows), num_views), np.tile(np.arange(num_views), len(rows))
    stored = store.read(f"{key}/{field.name}", flat, views=views, check=True)
    if _dtype(field) == "float16":  # decoding makes it float32, and the way back costs as much as all the rest
        return stored[field.name]
    values: npt.NDArray[Any] = field.decode(stored, store.constants(key), np)
    return values


def _write_pairs(group: Any, kind: str, table: pa.Table) -> None:
    dataset = group.create_dataset(kind, (table.num_rows, 2), np.int64)
    dataset.attrs["modalities"] = kind.split("-")
    for start in range(0, table.num_rows, layout.NUM_STRINGS):
        part = table.slice(start, layout.NUM_STRINGS)
        columns = [part.column(name).to_numpy() for name in kind.split("-")]
        dataset[start : start + part.num_rows] = np.stack(columns, axis=1)


def _dtype(field: Field) -> str:
    return field.encoding.kind if field.encoding.kind in ("float16", "int32") else "float32"


def _row_bytes(store: TargetStore, key: str, field: Field) -> int:
    """Bytes of one row's decoded values, all views, as float32."""
    return store.fieldsets[key].views_per_row * math.prod(field.shape) * 4


def _num_bytes(store: TargetStore, key: str, field: Field) -> int:
    num_rows = store.manifest.num_rows(store.fieldsets[key].modality)
    return num_rows * _row_bytes(store, key, field) // 4 * np.dtype(_dtype(field)).itemsize


def _json(tree: Mapping[str, Any]) -> str:
    return json.dumps(dict(tree), ensure_ascii=False)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
