"""Ours: the target store, as the programs use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from contract.manifest import Manifest, items_table
from contract.schema import Field, FieldSet, shard_rows
from contract.store import TargetStore
from peers.batches import SHAPE, Array, Read, Rows

KEY, FIELD = "image/encoder", "patches"
REFERENCE = f"{KEY}/{FIELD}"
FIELDS = (Field(name=FIELD, shape=SHAPE),)


def create(path: Path, num_rows: int, fields: tuple[Field, ...] = FIELDS) -> TargetStore:
    """An empty store of `num_rows` images with these fields."""
    items = items_table({"id": [f"{row:08d}" for row in range(num_rows)], "split": ["train"] * num_rows})
    store = TargetStore.create(path, Manifest(dataset="benchmark", protocol="none", items={"image": items}))
    modality, _, name = KEY.partition("/")
    fieldset = FieldSet(
        name=name,
        modality=modality,
        fields=fields,
        batch_size=256,
        provenance={},
        rows_per_shard=shard_rows(fields),
    )
    store.add(fieldset)
    return store


def write(path: Path, values: Mapping[str, Array], fields: tuple[Field, ...] = FIELDS) -> TargetStore:
    """A store that holds `values` [rows, *shape] of each field, opened as a trainer opens it."""
    num_rows = {len(array) for array in values.values()}.pop()
    store = create(path, num_rows, fields)
    for shard in range(store.num_shards(KEY)):
        rows = store.shard_rows(KEY, shard)
        store.write_shard(KEY, shard, {name: array[rows.start : rows.stop] for name, array in values.items()})
    return TargetStore.open(path)


def reader(store: TargetStore, *, check: bool = False) -> Read:
    """Reading into the buffer, with `check` comparing every row's checksum."""

    def read(rows: Rows, out: torch.Tensor) -> torch.Tensor:
        stored = store.read(REFERENCE, rows, out={FIELD: out.numpy()}, check=check)
        return torch.from_numpy(stored[FIELD])

    return read
