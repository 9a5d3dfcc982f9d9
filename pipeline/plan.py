"""What a run would write and what is already there; loads no weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contract import config
from contract.errors import ConfigError, DataError, MissingExtraError, StoreError
from contract.manifest import Manifest
from contract.schema import FieldSet, shard_rows
from contract.store import TargetStore
from encoders import Encoder
from pipeline.settings import Precompute

VERSIONS_OF = ("precept", "torch", "timm", "transformers", "numpy", "zarr")
# Room that must be left beside the shards, for metadata and for what else the machine does.
SPARE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Task:
    """One FieldSet that is to be computed, and the shards of it that are missing."""

    fieldset: FieldSet
    encoder: Encoder
    num_rows: int
    missing: tuple[range, ...]
    num_shards: int

    @property
    def missing_rows(self) -> int:
        """Rows yet to be computed."""
        return sum(len(rows) for rows in self.missing)

    @property
    def missing_bytes(self) -> int:
        """Bytes yet to be written."""
        return self.missing_rows * self.fieldset.row_bytes


def make(
    settings: Precompute, manifest: Manifest, store_path: Path, command: str, *, needs_weights: bool = True
) -> list[Task]:
    """The run's tasks, against what the store at `store_path` holds, if there is one.

    Without `needs_weights`, an encoder whose weights are yet to be fetched is planned as if nothing were there.
    """
    store = None
    if (store_path / "precept/manifest/manifest.json").exists():
        store = TargetStore.open(store_path)
        store.require_manifest(manifest)
    tasks = []
    for modality, name, encoder in settings.encoders:
        if modality not in manifest.items:
            raise DataError(
                f"encoders.{modality}.{name}: dataset {manifest.dataset} has no {modality} items, "
                f"only {', '.join(manifest.modalities)}"
            )
        try:
            recipe = encoder.recipe()
        except MissingExtraError:
            if needs_weights:
                raise
            tasks.append(_task(_fieldset(modality, name, encoder, {}, command), encoder, manifest, None))
        else:
            tasks.append(_task(_fieldset(modality, name, encoder, recipe, command), encoder, manifest, store))
    if not tasks:
        raise ConfigError("the configuration names no encoder under `encoders`")
    return tasks


def check_disk_space(tasks: list[Task], store_path: Path) -> None:
    """Raise `StoreError` unless the disk has room for what is missing."""
    needed = sum(task.missing_bytes for task in tasks)
    existing = next(folder for folder in [store_path, *store_path.absolute().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + SPARE_BYTES > free:
        raise StoreError(
            f"{store_path}: {gigabytes(needed)} are to be written and {gigabytes(free)} are free; "
            "free some space, or give a --store on another disk"
        )


def table(tasks: list[Task], store_path: Path) -> str:
    """The plan as lines for a person."""
    rows = [("FieldSet", "rows", "shards", "there", "bytes/row", "to write")]
    rows += [
        (
            task.fieldset.key,
            f"{task.num_rows:,}",
            f"{task.num_shards:,}",
            f"{task.num_shards - len(task.missing):,}",
            f"{task.fieldset.row_bytes:,}",
            gigabytes(task.missing_bytes),
        )
        for task in tasks
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    total = sum(task.missing_bytes for task in tasks)
    rows_left = sum(task.missing_rows for task in tasks)
    return "\n".join([*lines, f"{store_path}: {rows_left:,} rows to compute, {gigabytes(total)} to write"])


def gigabytes(size_bytes: int) -> str:
    """A size for a person."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"


def _fieldset(modality: str, name: str, encoder: Encoder, recipe: Mapping[str, Any], command: str) -> FieldSet:
    fields = encoder.fields()
    provenance = {
        "recipe": dict(recipe),
        "encoder": config.tree(encoder),
        "versions": {package: _version(package) for package in VERSIONS_OF},
        "command": command,
    }
    return FieldSet(
        name=name,
        modality=modality,
        fields=fields,
        batch_size=encoder.batch_size,
        rows_per_shard=shard_rows(fields),
        provenance=provenance,
    )


def _task(fieldset: FieldSet, encoder: Encoder, manifest: Manifest, store: TargetStore | None) -> Task:
    num_rows = manifest.num_rows(fieldset.modality)
    step = fieldset.rows_per_shard
    missing = [range(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    num_shards = len(missing)
    if store is not None and fieldset.key in store.fieldsets:
        store.require_fieldset(fieldset)
    if store is not None and _holds(store, fieldset):
        missing = [store.shard_rows(fieldset.key, shard) for shard in store.missing(fieldset.key)]
    return Task(
        fieldset=fieldset, encoder=encoder, num_rows=num_rows, missing=tuple(missing), num_shards=num_shards
    )


def _holds(store: TargetStore, fieldset: FieldSet) -> bool:
    present = store.fieldsets.get(fieldset.key)
    return present is not None and present.fingerprint == fieldset.fingerprint


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
