"""What a store holds, and whether it is as it was written, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from contract import kept
from contract.errors import StoreError
from contract.schema import Field, FieldSet
from contract.storage import StorePath, storage
from contract.store import TargetStore
from pipeline.plan import gigabytes

MOST_LISTED = 20


def describe(store: TargetStore) -> str:
    """Items, FieldSets with their fields and provenance, quarantined inputs."""
    return "\n".join([*_items(store), *(line for key in store.fieldsets for line in _fieldset(store, key))])


def verify(path: StorePath) -> str:
    """Read every byte of the store; raise `StoreError` with the list of what is wrong."""
    from tqdm import tqdm

    files = storage(path)
    if not TargetStore.exists(path) and not files.keys_under("precept/copies"):
        TargetStore.open(path)  # says that there is none
    faults = [f"{files.locate(fault.key)}: {fault.reason}" for fault in kept.faults(files)]
    if faults:
        raise StoreError(f"{path}: {'; '.join(faults[:MOST_LISTED])}; `pipeline repair {path}` mends it")
    store = TargetStore.open(path)
    store.require_intact_manifest()
    total = sum(store.num_shards(key) for key in store.fieldsets)
    checked, bad = 0, []
    for _, _, damage in tqdm(store.verify(), total=total, desc="verify", unit="shard"):
        checked += 1
        bad += [damage] if damage else []
    if bad:
        listed = "; ".join(f"{at.fieldset} shard {at.shard}: {at.reason}" for at in bad[:MOST_LISTED])
        raise StoreError(
            f"{path}: {len(bad)} of {checked} shards are damaged or missing: {listed}; `pipeline repair {path}` "
            "computes them again"
        )
    return f"{store.path}: {checked} shards are as they were written"


def cosines(found: Mapping[str, Mapping[str, float]]) -> str:
    """By field, how close a lower precision comes to float32."""
    told = [
        f"{name} {cosine['mean']:.6f} (least {cosine['least']:.6f})" for name, cosine in found.items() if cosine
    ]
    return ", ".join(told) or "nothing could be compared"


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
    if fieldset.num_views:
        yield f"  views: the evaluation view and {fieldset.num_views} augmented, of every row"
    gate = store.gate(key)
    if gate is not None:
        yield f"  gate: {gate['what']} {gate['value']:.1%}, chance {gate['chance']:.1%}"
    if "cosine_with_float32" in fieldset.provenance:
        yield f"  cosine with float32: {cosines(fieldset.provenance['cosine_with_float32'])}"
    halved = store.halved(key)
    if halved:
        smallest = min(halved.values())
        yield f"  memory ran out: {len(halved)} shards were computed with at most {smallest} views at a time"
    errors, clipped = store.losses(key)
    for field in fieldset.fields:
        about = ", ".join(f"{name} {value}" for name, value in field.about.items())
        figures = [f"{name.replace('_', ' ')} {value:.2g}" for name, value in errors.get(field.name, {}).items()]
        figures += [f"{clipped[field.name]:,} values clipped"] if field.name in clipped else []
        size_bytes = fieldset.views_per_row * field.row_bytes
        yield (
            f"  {field.name}: {list(field.shape)} as {_encoding(field)}, {size_bytes:,} bytes a sample"
            + (f", error: {', '.join(figures)}" if figures else "")
            + (f" ({about})" if about else "")
        )
    entries = store.quarantined(key)
    if entries:
        yield f"  quarantined: {len(entries):,}"
        yield from (f"    {entry.id}  {entry.file}  {entry.reason}" for entry in entries)


def _encoding(field: Field) -> str:
    settings = {name: value for name, value in asdict(field.encoding).items() if name != "kind" and value}
    return field.encoding.kind + "".join(f" {name}={value}" for name, value in settings.items())


def _maker(fieldset: FieldSet) -> str:
    recipe = fieldset.provenance.get("recipe", {})
    parts = [str(recipe.get("kind", "")), str(recipe.get("model", "")), f"weights {recipe.get('weights', 'none')}"]
    command = fieldset.provenance.get("command", "")
    return " ".join(part for part in parts if part) + (f", by `{command}`" if command else "")
