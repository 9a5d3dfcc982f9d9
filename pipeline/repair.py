"""Put a store right again: metadata from their copies, shards by computing them once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from contract import config, kept
from contract.errors import StoreError
from contract.manifest import UNKNOWN_SIZE
from contract.storage import StorePath, storage
from contract.store import TargetStore
from encoders import ENCODERS, Encoder
from pipeline import plan
from pipeline.settings import Views

MOST_LISTED = 20

Say = Callable[[str], None]


def mend_metadata(path: StorePath, say: Say) -> TargetStore:
    """Restore every file that is kept twice and was damaged; `StoreError` if both copies are."""
    files = storage(path)
    mended, lost = kept.mend(files)
    for key in mended:
        say(f"{files.locate(key)}: restored from its copy")
    if lost:
        raise StoreError(
            f"{path}: {len(lost)} files and their copies are both damaged: {', '.join(lost[:MOST_LISTED])}; "
            "nothing mends them: make the store again with `pipeline precompute` and another --store"
        )
    return TargetStore.open(path)


def tasks(store: TargetStore, say: Say, *, run_code: bool = False) -> list[plan.Task]:
    """Discard every shard that is not as it was written; what is to be computed, with the encoders that made it.

    `StoreError`, before anything is discarded, if they would not give the same values again, or if one is a
    function that the store names and not `run_code`: a store of somebody else may name any.
    """
    damaged = _damaged(store, say)
    made_by = {key: _maker(store, key, shards, run_code) for key, shards in damaged.items()}
    for key, shards in damaged.items():
        _require_same_files(store, key, shards)
    for key, shards in damaged.items():
        for shard in shards:
            if not store.kept_rows(key, shard):  # otherwise it is whole, and lacks what the dataset gained
                store.discard(key, shard)
    return [
        plan.task(store.fieldsets[key], encoder, views, store.manifest, store)
        for key, (encoder, views) in made_by.items()
    ]


def _damaged(store: TargetStore, say: Say) -> dict[str, list[int]]:
    """The shards of each FieldSet that are not as they were written, or were not written yet."""
    from tqdm import tqdm

    total = sum(store.num_shards(key) for key in store.fieldsets)
    verified = tqdm(store.verify(), total=total, desc="verify", unit="shard")
    bad = [(key, shard, damage.reason) for key, shard, damage in verified if damage is not None]
    for key, shard, reason in bad[:MOST_LISTED]:
        say(f"{key} shard {shard}: {reason}")
    if len(bad) > MOST_LISTED:
        say(f"and {len(bad) - MOST_LISTED:,} more shards")
    shards: dict[str, list[int]] = {}
    for key, shard, _ in bad:
        shards.setdefault(key, []).append(shard)
    return shards


def _maker(store: TargetStore, key: str, shards: Sequence[int], run_code: bool) -> tuple[Encoder, Views]:
    """The encoder that made a FieldSet, and its views; `StoreError` if it would now make another one."""
    fieldset = store.fieldsets[key]
    provenance, bad = fieldset.provenance, f"{store.path}: {len(shards)} shards of {key} are damaged or missing"
    if "command" in provenance and "encoder" not in provenance:
        for shard in shards:  # such a command makes what is missing, and does not look for what is damaged
            store.discard(key, shard)
        raise StoreError(f"{bad}, and no encoder made them; this command makes them again: {provenance['command']}")
    if "encoder" not in provenance:
        raise StoreError(
            f"{bad}, and no encoder made them, but {provenance.get('run', 'another program')}; "
            "that must make the whole store again"
        )
    factories = _factories(provenance["encoder"])
    if factories and not run_code:
        raise StoreError(
            f"{bad}, and were made by code that the store names: {', '.join(factories)}; if it is yours, "
            f"`pipeline repair {store.path} --run-code`"
        )
    source = f"{store.path}: provenance of {key}"
    encoder: Encoder = config.parse(provenance["encoder"], ENCODERS[fieldset.modality], source=source)
    views = config.parse(provenance["views"], Views, source=source)
    made = plan.fieldset(fieldset.modality, fieldset.name, encoder, views, provenance["command"])
    if made.fingerprint != fieldset.fingerprint:
        raise StoreError(
            f"{bad}, and can't be computed again as they were: {made.difference(fieldset)}; put the model's files "
            "back, or make the store anew"
        )
    return encoder, views


def _factories(encoder: Any) -> list[str]:
    """The functions that would be called to build an encoder, or the members of an ensemble."""
    if not isinstance(encoder, dict):
        return []
    own = [str(encoder["factory"])] if "factory" in encoder else []
    return own + [name for member in encoder.get("members", ()) for name in _factories(member)]


def _require_same_files(store: TargetStore, key: str, shards: Sequence[int]) -> None:
    """Raise `StoreError` if a photograph or a sound that is to be decoded again is not the one it was."""
    root = store.manifest.media_root
    changed = [change for shard in shards for change in _changed_files(store, key, shard)]
    if changed:
        raise StoreError(
            f"{store.path}: {key}: {len(changed):,} of the files to be read again are not as they were, such as "
            f"{changed[0]}; put them back under {root}, or say where they are now with `pipeline precompute "
            f"--dataset {store.manifest.dataset} --data-root DIR --store {store.path}`, and repair after that"
        )


def _changed_files(store: TargetStore, key: str, shard: int) -> Iterator[str]:
    manifest, modality = store.manifest, store.fieldsets[key].modality
    rows = store.shard_rows(key, shard)[store.kept_rows(key, shard) :]
    table = manifest.items[modality].select(["file", "part", "size_bytes"]).slice(rows.start, len(rows))
    for item in table.to_pylist():
        path, expected = Path(manifest.media_root) / item["file"], item["size_bytes"]
        # A part's size is its own, or that of a file that may since have been added to.
        if expected == UNKNOWN_SIZE or (item["part"] and path.exists()):
            continue
        found = path.stat().st_size if path.exists() else None
        if found != expected:
            yield f"{item['file']} ({'missing' if found is None else f'{found:,} bytes'}, not {expected:,} bytes)"
