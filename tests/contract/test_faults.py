"""Every file of a store, damaged in every way: it is found, nothing is read wrong, and all of it can be put right.

`survey` is one round of it; a soak test calls it with other seeds and more places for as long as it likes.
"""

import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contract import kept
from contract.errors import StoreError
from contract.storage import storage
from contract.store import TargetStore

# What is read where nothing was looked at must be an error of these kinds.
ERRORS = (StoreError, pa.ArrowException, UnicodeDecodeError)

KINDS = {
    "shard": "image/teacher/*/c/*",
    "root": "zarr.json",
    "reserved": "precept/zarr.json",
    "modality": "image/zarr.json",
    "added modality": "text/zarr.json",
    "fieldset": "image/teacher/zarr.json",
    "array": "image/teacher/*/zarr.json",
    "constant": "image/teacher/quantised.scale/c/*",
    "manifest": "precept/manifest/manifest.json",
    "table": "precept/manifest/*.arrow",
    "commit": "precept/commits/*/*/*.json",
    "gate": "precept/gates/*/*.json",
    "copy": "precept/copies/*",
    "checksums": "precept/checksums.json",
}


def put(path: Path, content: bytes | None) -> None:
    """Replace a file, or remove it; whoever has mapped the old one keeps it."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def damages(content: bytes, num_flips: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes | None]]:
    """The content with a bit flipped here and there, cut short, or gone."""
    for place in rng.integers(0, len(content), num_flips).tolist():
        bit = int(rng.integers(0, 8))
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        yield f"bit {bit} of byte {place} flipped", bytes(damaged)
    yield "empty", b""
    yield "cut in half", content[: len(content) // 2]
    yield "gone", None


def wrong(store: TargetStore, tiny: Any, stored: dict[str, np.ndarray]) -> list[str]:
    """Read everything with its checksums verified; the fields that are refused. Asserts that no value is wrong."""
    refused = []
    for field in tiny.fieldset.fields:
        for row in range(len(stored["features"])):
            try:
                views = np.arange(tiny.fieldset.views_per_row)
                found = store.read(f"{tiny.key}/{field.name}", [row] * len(views), views=views, check=True)
                decoded = field.decode(found, store.constants(tiny.key), np)
            except StoreError:
                refused.append(f"{field.name} {row}")
                continue
            expected = {name: stored[name][row] for name in field.arrays}
            for name in field.arrays:
                np.testing.assert_array_equal(found[name], expected[name])
            np.testing.assert_array_equal(decoded, field.decode(expected, tiny.constants, np))
    return refused


def found_by(path: Path, tiny: Any, stored: dict[str, np.ndarray], manifest: Any) -> list[str]:
    """By what a fault of the store is found; asserts that whatever is not refused is right."""
    by = ["kept.faults"] if list(kept.faults(storage(path))) else []
    try:
        store = TargetStore.open(path)
    except StoreError:
        return [*by, "open"]
    if tiny.key not in store.fieldsets:
        return [*by, "no FieldSet"]
    by += ["read"] if wrong(store, tiny, stored) else []
    try:
        store.require_intact_manifest()
    except StoreError:
        by.append("require_intact_manifest")
    else:
        assert all(store.manifest.items[name].equals(table) for name, table in manifest.items.items())
        assert all(store.manifest.pairs[name].equals(table) for name, table in manifest.pairs.items())
    try:
        assert store.gate(tiny.key) in (None, {"value": 0.5})
        by += ["missing"] if store.missing(tiny.key) else []
        by += ["verify"] if any(damage for *_, damage in store.verify()) else []
    except ERRORS:
        by.append("an error")
    return by


def put_right(path: Path, tiny: Any) -> None:
    """What `pipeline repair` does."""
    assert kept.mend(storage(path))[1] == []
    store = TargetStore.open(path)
    for key, shard, damage in list(store.verify()):
        if damage is not None:
            store.discard(key, shard)
    tiny.fill(store)


def survey(path: Path, tiny: Any, manifest: Any, pattern: str, num_flips: int, seed: int) -> int:
    """Damage each file of the store that matches, in every way; how many times that was."""
    whole = {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    stored, num_tried = tiny.stored(manifest.column("image", "id")), 0
    assert found_by(path, tiny, stored, manifest) == []
    for file, content in whole.items():
        name = str(file.relative_to(path))
        if not fnmatch(name, pattern):
            continue
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        for what, damaged in damages(content, num_flips, rng):
            put(file, damaged)
            try:
                assert found_by(path, tiny, stored, manifest)
                put_right(path, tiny)
                assert {one: one.read_bytes() for one in path.rglob("*") if one.is_file()} == whole
            except BaseException as error:
                error.add_note(f"{name}: {what}")
                raise
            num_tried += 1
    return num_tried


@pytest.fixture(scope="module")
def small(tiny) -> Any:
    """Fewer fields, two views, four items in a shard."""
    return tiny.only("features", "quantised", "logits", "length").but(num_views=1, rows_per_shard=4)


@pytest.fixture(scope="module")
def store(small, scenes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six items, so that the second shard is part full; their captions, pairs, and what the teacher scored."""
    path = tmp_path_factory.mktemp("faults") / "tiny.zarr"
    made = small.create(path, scenes(4, captions=True))
    made.write_gate(small.fieldset, {"value": 0.5})
    small.fill(TargetStore.create(path, scenes(6, captions=True)))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_fault_is_found_and_put_right_to_the_byte(small, store: Path, scenes, kind: str) -> None:
    assert survey(store, small, scenes(6, captions=True), KINDS[kind], num_flips=2, seed=0) >= 5


def test_every_file_is_of_a_kind(store: Path) -> None:
    names = [str(file.relative_to(store)) for file in store.rglob("*") if file.is_file()]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in KINDS.values())] == []
