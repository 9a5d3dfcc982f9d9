"""What a store holds, and whether it is as it was written, in words."""

from __future__ import annotations

from collections.abc import Iterator

from contract.errors import StoreError
from contract.schema import FieldSet
from contract.store import TargetStore
from pipeline.plan import gigabytes

MOST_LISTED = 20


def describe(store: TargetStore) -> str:
    """Items, FieldSets with their fields and provenance, quarantined inputs."""
    return "\n".join([*_items(store), *(line for key in store.fieldsets for line in _fieldset(store, key))])


def verify(store: TargetStore) -> str:
    """Check every committed shard; raise `StoreError` with the list of what is wrong."""
    from tqdm import tqdm

    if not store.manifest.is_intact():
        raise StoreError(f"{store.path}/precept/manifest: the manifest is not the one that was written")
    total = sum(store.num_shards(key) for key in store.fieldsets)
    checked, bad = 0, []
    for _, _, damage in tqdm(store.verify(), total=total, desc="verify", unit="shard"):
        checked += 1
        bad += [damage] if damage else []
    if bad:
        listed = "; ".join(f"{at.fieldset} shard {at.shard}: {at.reason}" for at in bad[:MOST_LISTED])
        raise StoreError(
            f"{store.path}: {len(bad)} of {checked} shards are damaged: {listed}; remove their commit records "
            f"under {store.path}/precept/commits and run the same `pipeline precompute` again to recompute them"
        )
    store.require_complete(store.fieldsets)
    return f"{store.path}: {checked} shards are as they were written"


def _items(store: TargetStore) -> Iterator[str]:
    manifest = store.manifest
    yield f"{store.path}: dataset {manifest.dataset}, files under {manifest.media_root}"
    for modality in manifest.modalities:
        splits = ", ".join(f"{split} {count:,}" for split, count in manifest.splits(modality).items())
        yield f"  {modality}: {manifest.num_rows(modality):,} items ({splits})"
    for kind, table in manifest.pairs.items():
        yield f"  {kind}: {table.num_rows:,} pairs"
    languages = manifest.languages()
    if languages:
        yield f"  languages: {', '.join(f'{name} {count:,}' for name, count in languages.items())}"


def _fieldset(store: TargetStore, key: str) -> Iterator[str]:
    fieldset = store.fieldsets[key]
    missing = store.missing(key)
    state = "complete" if not missing else f"{len(missing)} of {store.num_shards(key)} shards missing"
    size = gigabytes(fieldset.row_bytes * store.manifest.num_rows(fieldset.modality))
    yield f"{key}: {state}, {size}, fingerprint {fieldset.fingerprint}"
    yield f"  made by {_maker(fieldset)}"
    for field in fieldset.fields:
        about = ", ".join(f"{name} {value}" for name, value in field.about.items())
        yield (
            f"  {field.name}: {list(field.shape)} as {field.encoding.kind}, {field.row_bytes:,} bytes a row"
            + (f" ({about})" if about else "")
        )
    entries = store.quarantined(key)
    if entries:
        yield f"  quarantined: {len(entries):,}"
        yield from (f"    {entry.id}  {entry.file}  {entry.reason}" for entry in entries)


def _maker(fieldset: FieldSet) -> str:
    recipe = fieldset.provenance.get("recipe", {})
    parts = [str(recipe.get("kind", "")), str(recipe.get("model", "")), f"weights {recipe.get('weights', 'none')}"]
    command = fieldset.provenance.get("command", "")
    return " ".join(part for part in parts if part) + (f", by `{command}`" if command else "")
