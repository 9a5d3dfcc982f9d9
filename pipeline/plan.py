"""What a run would write and what is already there; loads no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contract import config
from contract.encodings import Float32
from contract.errors import ConfigError, DataError, MissingExtraError, StoreError
from contract.manifest import Manifest
from contract.schema import Field, FieldSet, shard_rows
from contract.storage import StorePath, is_url
from contract.store import TargetStore
from encoders import Encoder
from pipeline.settings import Precompute, Views

VERSIONS_OF = ("precept", "torch", "timm", "transformers", "numpy", "zarr")
PARAMETERS = "view_parameters"
# Room that must be left beside the shards, for metadata and for what else the machine does.
SPARE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Task:
    """One FieldSet that is to be computed, and the rows of its missing shards that are."""

    fieldset: FieldSet
    encoder: Encoder
    views: Views
    num_rows: int
    num_shards: int
    missing: tuple[range, ...]

    @property
    def missing_rows(self) -> int:
        """Rows yet to be computed."""
        return sum(len(rows) for rows in self.missing)

    @property
    def shards(self) -> list[int]:
        """The missing shards."""
        return [rows.start // self.fieldset.rows_per_shard for rows in self.missing]

    @property
    def missing_bytes(self) -> int:
        """Bytes yet to be written."""
        return self.missing_rows * self.fieldset.row_bytes


def make(
    settings: Precompute,
    manifest: Manifest,
    store_path: StorePath,
    command: str,
    *,
    needs_weights: bool = True,
    batch_size: str | None = None,
) -> list[Task]:
    """The run's tasks, against what the store at `store_path` holds, if there is one.

    Without `needs_weights`, an encoder whose weights are yet to be fetched is planned as if nothing were there.
    `batch_size` is a number of views for every encoder, or "auto": as what is there already, if anything is.
    """
    store = TargetStore.open(store_path) if TargetStore.exists(store_path) else None
    if store is not None:
        store.adopt(manifest)
    tasks = []
    for modality, name, configured in settings.encoders:
        encoder = _with_batch_size(configured, batch_size, store, f"{modality}/{name}")
        if modality not in manifest.items:
            raise DataError(
                f"encoders.{modality}.{name}: dataset {manifest.dataset} has no {modality} items, "
                f"only {', '.join(manifest.modalities)}"
            )
        try:
            made, known = fieldset(modality, name, encoder, settings.views, command), store
        except MissingExtraError:
            if needs_weights:
                raise
            made, known = fieldset(modality, name, encoder, settings.views, command, recipe={}), None
        tasks.append(task(made, encoder, settings.views, manifest, known))
    if not tasks:
        raise ConfigError("the configuration names no encoder under `encoders`")
    return tasks


def require_room(path: StorePath, needed_bytes: int) -> None:
    """Raise `StoreError` unless the disk has room for so much; nothing is known of a remote one."""
    if is_url(path):
        return
    existing = next(folder for folder in [Path(path), *Path(path).absolute().parents] if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed_bytes and needed_bytes + SPARE_BYTES > free:
        raise StoreError(
            f"{path}: {gigabytes(needed_bytes)} are to be written and {gigabytes(free)} are free; "
            "free some space, or write to another disk"
        )


def check_disk_space(tasks: list[Task], store_path: StorePath) -> None:
    """Raise `StoreError` unless the disk has room for what is missing."""
    require_room(store_path, sum(task.missing_bytes for task in tasks))


def table(tasks: list[Task], store_path: StorePath) -> str:
    """The plan as lines for a person."""
    rows = [("FieldSet", "rows", "shards", "there", "bytes/row", "to write")]
    rows += [
        (
            task.fieldset.key,
            f"{task.num_rows:,}",
            f"{task.num_shards:,}",
            f"{task.num_shards - len(task.shards):,}",
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


def fieldset(
    modality: str,
    name: str,
    encoder: Encoder,
    views: Views,
    command: str,
    *,
    recipe: Mapping[str, Any] | None = None,
) -> FieldSet:
    """What the encoder will make; asks it for its recipe, which needs its weights, unless one is given."""
    fields, num_views = encoder.fields(), 0
    recipe = dict(encoder.recipe() if recipe is None else recipe)
    augmentation = views.of(modality)
    if augmentation is not None:
        num_views = views.num
        recipe["augmentation"] = {"seed": views.seed, **asdict(augmentation)}
        about = {"parameters": list(augmentation.PARAMETERS), "all_zero": "the evaluation view"}
        shape = (len(augmentation.PARAMETERS),)
        fields = (*fields, Field(name=PARAMETERS, shape=shape, encoding=Float32(), about=about))
    provenance = {
        # Through JSON, so that what is compared later compares equal.
        "recipe": json.loads(json.dumps(recipe)),
        "encoder": config.tree(encoder),
        "views": config.tree(views),
        "versions": {package: _version(package) for package in VERSIONS_OF},
        "command": command,
    }
    return FieldSet(
        name=name,
        modality=modality,
        fields=fields,
        batch_size=encoder.batch_size,
        rows_per_shard=shard_rows(fields, num_views),
        num_views=num_views,
        provenance=provenance,
    )


def task(fieldset: FieldSet, encoder: Encoder, views: Views, manifest: Manifest, store: TargetStore | None) -> Task:
    """What is missing of a FieldSet: in `store`, if it is there at all."""
    num_rows, step = manifest.num_rows(fieldset.modality), fieldset.rows_per_shard
    missing = [range(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    num_shards = len(missing)
    if store is not None:
        store.require_fieldset(fieldset)
        if store.holds(fieldset):
            key = fieldset.key
            missing = [store.shard_rows(key, shard)[store.kept_rows(key, shard) :] for shard in store.missing(key)]
            num_rows = store.manifest.num_rows(fieldset.modality)
            num_shards = store.num_shards(key)
    return Task(
        fieldset=fieldset,
        encoder=encoder,
        views=views,
        num_rows=num_rows,
        num_shards=num_shards,
        missing=tuple(missing),
    )


def resized(task: Task, batch_size: int) -> Task:
    """The same with batches of another size; of a FieldSet that is yet to be begun."""
    encoder, old = replace(task.encoder, batch_size=batch_size), task.fieldset  # type: ignore[type-var]
    provenance = {**old.provenance, "encoder": config.tree(encoder)}
    return replace(task, encoder=encoder, fieldset=replace(old, batch_size=batch_size, provenance=provenance))


def _with_batch_size(encoder: Encoder, wanted: str | None, store: TargetStore | None, key: str) -> Encoder:
    if wanted is None:
        return encoder
    if wanted == "auto":
        known = store.fieldsets.get(key) if store is not None else None
        size = known.batch_size if known is not None else encoder.batch_size
    elif wanted.isdecimal() and int(wanted):
        size = int(wanted)
    else:
        raise ConfigError(f"--batch-size {wanted}: expected a number from 1 up, or auto")
    return replace(encoder, batch_size=size)  # type: ignore[type-var]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
