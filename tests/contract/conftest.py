"""A tiny store with every encoding, whose values are a function of an item's id."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from contract.encodings import BFloat16, Float8, Float16, Float32, Int8, Int32, Lookup, Pixels, TopK
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.store import TargetStore

FIELDS = (
    Field(name="patches", shape=(8300,), encoding=Float32()),  # one view in an inner chunk
    Field(name="wide", shape=(2100,), encoding=BFloat16()),  # several rows in a chunk, copied one by one
    Field(name="coarse", shape=(4000,), encoding=Float8()),  # several rows in a chunk, copied at once
    Field(name="features", shape=(3, 20), encoding=Float16()),  # a shard in one chunk
    Field(name="quantised", shape=(2, 12), encoding=Int8()),
    Field(name="logits", shape=(30,), encoding=TopK(k=4), about={"temperature": 1.0}),
    Field(name="tokens", shape=(5, 16), encoding=Lookup()),
    Field(name="pixels", shape=(4, 8), encoding=Pixels(height=8, width=8)),
    Field(name="length", shape=(), encoding=Int32()),
)
RNG = np.random.default_rng(0)
CONSTANTS = {
    "quantised.scale": np.full(12, 0.02, np.float32),  # some values are clipped
    "tokens.table": RNG.normal(size=(50, 16)).astype(np.float32),
    "pixels.weight": RNG.normal(size=(8, 4, 4, 3)).astype(np.float32),
    "pixels.bias": RNG.normal(size=8).astype(np.float32),
}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A FieldSet and what its values are."""

    fieldset: FieldSet

    @property
    def key(self) -> str:
        return self.fieldset.key

    @property
    def constants(self) -> Arrays:
        return {name: CONSTANTS[name] for field in self.fieldset.fields for name in field.constants}

    def but(self, **changes: Any) -> Tiny:
        """The same with another name, number of views and so on."""
        return Tiny(fieldset=replace(self.fieldset, **changes))

    def only(self, *names: str) -> Tiny:
        """The same with these fields alone."""
        return self.but(fields=tuple(field for field in self.fieldset.fields if field.name in names))

    def create(self, path: Path, manifest: Manifest) -> TargetStore:
        """The store with this FieldSet, and no value yet."""
        store = TargetStore.create(path, manifest)
        store.add(self.fieldset, self.constants)
        return store

    def fill(self, store: TargetStore, shards: Sequence[int] | None = None) -> None:
        """Compute what is missing, or these shards, of the rows that are not there yet."""
        ids = store.manifest.column(self.fieldset.modality, "id")
        for shard in store.missing(self.key) if shards is None else shards:
            rows = store.shard_rows(self.key, shard)[store.kept_rows(self.key, shard) :]
            store.write_shard(self.key, shard, self.values(ids[rows.start : rows.stop]))

    def values(self, ids: Sequence[str]) -> Arrays:
        """What `write_shard` takes: [n, ...], or [n, views, ...]."""
        views = (self.fieldset.views_per_row,) if self.fieldset.num_views else ()
        found: dict[str, list[np.ndarray]] = {field.name: [] for field in self.fieldset.fields}
        for name in ids:
            rng = np.random.default_rng(crc32(name.encode()))
            for field in self.fieldset.fields:
                dtype, shape = field.encoding.input(field.shape)
                whole = dtype != "float32"
                row = rng.integers(0, 50, (*views, *shape)) if whole else rng.normal(size=(*views, *shape))
                found[field.name].append(row.astype(dtype))
        return {name: np.stack(rows) for name, rows in found.items()}

    def stored(self, ids: Sequence[str]) -> Arrays:
        """The arrays that must stand in the store: [n, ...], or [n, views, ...]."""
        arrays: Arrays = {}
        for field in self.fieldset.fields:
            values = self.values(ids)[field.name]
            leading = values.shape[:2] if self.fieldset.num_views else values.shape[:1]
            flat = field.encode(values.reshape(-1, *values.shape[len(leading) :]), self.constants)
            arrays |= {name: array.reshape(*leading, *array.shape[1:]) for name, array in flat.items()}
        return arrays


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Three views of every item; eight items in a shard."""
    return Tiny(
        fieldset=FieldSet(
            name="teacher",
            modality="image",
            fields=FIELDS,
            batch_size=4,
            provenance={"recipe": {"model": "resnet", "rate": 1e-05}, "command": "pipeline precompute"},
            rows_per_shard=8,
            num_views=2,
        )
    )


@pytest.fixture(scope="session")
def scenes() -> Callable[..., Manifest]:
    """Make a manifest of `num_images` images, with captions and their pairs or without."""

    def make(num_images: int, captions: bool = False, order: Sequence[int] | None = None) -> Manifest:
        numbers = list(order if order is not None else range(num_images))
        items = {"image": items_table({"id": [f"i{n}" for n in numbers], "split": ["train"] * num_images})}
        if not captions:
            return Manifest(dataset="tiny", protocol="tiny", items=items)
        items["text"] = items_table(
            {
                "id": [f"i{n}#{k}" for n in numbers for k in range(2)],
                "text": [f"caption {k} of {n}, schön" for n in numbers for k in range(2)],
                "split": ["train"] * 2 * num_images,
            }
        )
        pairs = [(row, 2 * row + k) for row in range(num_images) for k in range(2)]
        return Manifest(
            dataset="tiny", protocol="tiny", items=items, pairs=dict([pairs_table("image", "text", pairs)])
        )

    return make


@pytest.fixture(scope="session")
def whole(tiny: Tiny, scenes: Callable[..., Manifest], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of 20 items: with views in three shards, the last part full; without views in two."""
    path = tmp_path_factory.mktemp("whole") / "tiny.zarr"
    for one in (tiny, tiny.but(name="plain", num_views=0, rows_per_shard=16)):
        one.fill(one.create(path, scenes(20)))
    return path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished store that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "tiny.zarr"))


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Read every file of a folder."""
    return lambda path: {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.fixture(scope="session")
def full_disk() -> Callable[[int], Any]:
    """Have the operating system refuse to make any file longer than so many bytes, in a `with` block."""

    @contextmanager
    def limited(size_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def without_rights(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Make the current folder one that may be read and not written, in a `with` block."""

    @contextmanager
    def limited(folder: Path) -> Iterator[None]:
        monkeypatch.chdir(folder)  # the way there may be closed to others
        paths = [folder, *folder.rglob("*")]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(65534)
            yield
        finally:
            if is_root:
                os.seteuid(0)
            for path in paths:
                path.chmod(0o755 if path.is_dir() else 0o644)

    return limited
