"""A store of an HDF5 file.

The values are read twice: first all of them are hashed and checked, so that what can't be stored is said before
anything is written, then they are stored shard by shard. The hash is part of the FieldSet's fingerprint, so the
same command continues an import that was killed, and another file does not mix with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from contract.encodings import NotEncodableError
from contract.errors import DataError, StoreError
from contract.fingerprint import NUM_DIGITS
from contract.manifest import Manifest
from contract.schema import Field, FieldSet
from contract.storage import StorePath
from contract.store import Quarantined, TargetStore, writing
from pipeline.hdf5 import contents as files
from pipeline.hdf5 import fields, items, layout
from pipeline.hdf5.contents import Array, Contents
from pipeline.hdf5.fields import Source
from pipeline.plan import require_room


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A finished store, and how many rows of its FieldSets were written now."""

    store: TargetStore
    num_rows: int


def import_(
    path: Path,
    store_path: StorePath,
    names: Mapping[str, str],
    dataset: str | None = None,
    *,
    command: str = "",
    say: Callable[[str], None] = print,
) -> Imported:
    """Make or finish the store of the file at `path`.

    `names` maps targets to datasets, and is empty for a file in our layout; `dataset` is what the store says it
    holds, by default what the file says. `say` is told before the work what was assumed.
    """
    dataset = dataset or files.dataset_name(path)
    with files.opened(path) as file:
        contents = Contents(path, file, names)
        sources = list(fields.sources(contents))
        if not sources:
            raise files.no_field(path, file, "has no field under the names given")
        manifest = items.manifest(contents, dataset)
        _require_same_items(store_path, manifest)
        for line in _assumptions(contents, manifest):
            say(line)
        made = _fieldsets(contents, sources, manifest, command)
        with writing(store_path):
            store = _prepared(store_path, manifest, made)
            num_rows = sum(_fill(store, contents, source) for source in sources)
    store.require_complete(fieldset.key for fieldset in made)
    return Imported(store=store, num_rows=num_rows)


def _assumptions(contents: Contents, manifest: Manifest) -> Iterator[str]:
    """What the file or its names leave open and how it was taken, what is changed and what is left."""
    for modality in manifest.modalities:
        named = contents.columns(modality)
        if "id" not in named:
            yield f"{modality} ids are row numbers, since nothing is named {modality}/id"
        if "split" not in named:
            yield f"every {modality} item is in the split train, since nothing is named {modality}/split"
    if "text" in manifest.modalities and "text" not in contents.columns("text"):
        yield "the captions themselves are not kept, since nothing is named text/text"
    if len(manifest.modalities) > 1 and not manifest.pairs:
        yield f"no items are paired, since nothing is named {layout.PAIRS}/{layout.PAIR_KINDS[0]} or the like"
    for key, names in contents.fields().items():
        for target in (f"{key}/{name}" for name in names):
            if contents.dataset(target).dtype.kind == "f" and contents.dataset(target).dtype.itemsize > 4:
                yield f"{contents.said(target)} is {contents.dataset(target).dtype} and is stored as float32"
    rest = contents.rest()
    if rest:
        yield f"left aside, since no --map names them: {files.some(rest)}"


def _require_same_items(store_path: StorePath, manifest: Manifest) -> None:
    """Raise `StoreError` if a store lies there that is of other items; an import never adds to them."""
    if not TargetStore.exists(store_path):
        return
    store = TargetStore.open(store_path)
    if store.manifest.fingerprint != manifest.fingerprint:
        store.adopt(manifest)
        raise StoreError(
            f"{store_path} holds only some of these items, and an import adds none; give another --store"
        )


def _fieldsets(contents: Contents, sources: Sequence[Source], manifest: Manifest, command: str) -> list[FieldSet]:
    """What is to be stored, once every value has been found storable."""
    total = sum(contents.row_bytes(f"{s.key}/{f.name}") * len(s.mask) for s in sources for f in s.fields)
    name = contents.path.name
    with tqdm(total=total, desc=f"check {name}", unit="B", unit_scale=True, mininterval=0.5) as bar:
        hashes = [_hash(contents, source, manifest, bar.update) for source in sources]
    return [source.fieldset(contents, found, command) for source, found in zip(sources, hashes, strict=True)]


def _hash(contents: Contents, source: Source, manifest: Manifest, advance: Callable[[int], object]) -> str:
    """Over the mask, and each field's name, dtype, shape and bytes, whatever the chunks and their compression."""
    digest = hashlib.sha256(source.mask.data)
    for field in sorted(source.fields, key=lambda field: field.name):
        target = f"{source.key}/{field.name}"
        digest.update(f"{field.name} {contents.shown(target)}".encode())
        for rows in layout.blocks(range(len(source.mask)), contents.row_bytes(target)):
            values = contents.read(target, rows)
            digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            _check(contents, source, field, manifest, rows, values)
            advance(values.nbytes)
    return digest.hexdigest()[:NUM_DIGITS]


def _check(
    contents: Contents, source: Source, field: Field, manifest: Manifest, rows: range, values: Array
) -> None:
    """Raise `DataError` for the first value that can't be stored."""
    try:
        flat = fields.storable(values, source.mask[rows.start : rows.stop]).reshape(-1, *field.shape)
        field.encode(flat, {})
    except NotEncodableError as error:
        row = rows[error.row // (source.num_views + 1)]
        target, sample = f"{source.key}/{field.name}", manifest.column(source.modality, "id", [row])[0]
        raise DataError(
            f"{contents.path}: {contents.said(target)}, sample {sample!r} (row {row}) and perhaps others: {error}; "
            f"mend the file, or mark such rows in a mask, {source.key}/{layout.QUARANTINED}"
        ) from error


def _prepared(store_path: StorePath, manifest: Manifest, fieldsets: Sequence[FieldSet]) -> TargetStore:
    """The store, new or as it is, with room for the FieldSets."""
    _require_same_items(store_path, manifest)
    store = TargetStore.open(store_path) if TargetStore.exists(store_path) else None
    needed_bytes = 0
    for fieldset in fieldsets:
        num_rows = manifest.num_rows(fieldset.modality)
        if store is not None:
            store.require_fieldset(fieldset)
            if store.holds(fieldset):
                num_rows = sum(_num_missing(store, fieldset.key))
        needed_bytes += num_rows * fieldset.row_bytes
    require_room(store_path, needed_bytes)
    store = store or TargetStore.create(store_path, manifest)
    for fieldset in fieldsets:
        store.add(fieldset)
    return store


def _num_missing(store: TargetStore, key: str) -> Iterator[int]:
    """Rows of each shard that is to be written."""
    return (len(store.shard_rows(key, shard)) for shard in store.missing(key))


def _fill(store: TargetStore, contents: Contents, source: Source) -> int:
    """Store the missing shards; returns the number of rows in them."""
    missing, num_rows = store.missing(source.key), sum(_num_missing(store, source.key))
    if not missing:
        return 0
    with tqdm(total=num_rows, desc=source.key, unit="row", unit_scale=True, mininterval=0.5) as bar:
        for shard in missing:
            rows = store.shard_rows(source.key, shard)
            mask = source.mask[rows.start : rows.stop]
            values = {
                field.name: fields.storable(contents.read(f"{source.key}/{field.name}", rows), mask)
                for field in source.fields
            }
            bad = (rows.start + np.flatnonzero(mask)).tolist()
            store.write_shard(source.key, shard, values, _quarantined(store, contents, source, bad))
            bar.update(len(rows))
    return num_rows


def _quarantined(store: TargetStore, contents: Contents, source: Source, rows: Sequence[int]) -> list[Quarantined]:
    ids, names = (store.manifest.column(source.modality, name, rows) for name in ("id", "file"))
    return [
        Quarantined(row=row, id=id_, file=name, reason=f"quarantined in {contents.path.name}")
        for row, id_, name in zip(rows, ids, names, strict=True)
    ]
