"""A small store with several shards, constants and two modalities, written wherever a test wants it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import pytest

from contract.encodings import Float32, Int8
from contract.manifest import Manifest, items_table, pairs_table
from contract.schema import Field, FieldSet
from contract.storage import StorePath
from contract.store import Quarantined, TargetStore

NUM_ROWS = 60
ROWS_PER_SHARD = 16
PATCHES = Field(name="patches", shape=(9, 50))
QUANTISED = Field(name="quantised", shape=(40,), encoding=Int8())
LOGITS = Field(name="logits", shape=(10,), encoding=Float32())
FIELDS = {"image/teacher": (PATCHES, QUANTISED, LOGITS), "text/teacher": (LOGITS,)}


class Large:
    """A content that is written piece by piece."""

    content = bytes(range(256)) * 400

    @property
    def crc32c(self) -> int:
        return int(google_crc32c.value(self.content))

    def write(self, file: IO[bytes]) -> None:
        for start in range(0, len(self.content), 1000):
            file.write(self.content[start : start + 1000])


@pytest.fixture
def large() -> Large:
    """A content of 100 kB."""
    return Large()


class Sample:
    """What is in the store, and how it gets there."""

    keys = tuple(FIELDS)
    references = tuple(f"{key}/{field.name}" for key, fields in FIELDS.items() for field in fields)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        fields = (PATCHES, QUANTISED, LOGITS)
        self.values = {f.name: rng.normal(size=(NUM_ROWS, *f.shape)).astype(np.float32) for f in fields}

    def manifest(self, num_rows: int = NUM_ROWS) -> Manifest:
        """`num_rows` images with a caption each."""
        splits = ["train"] * num_rows
        items = {
            "image": items_table({"id": [f"i{n}" for n in range(num_rows)], "split": splits}),
            "text": items_table({"id": [f"t{n}" for n in range(num_rows)], "split": splits}),
        }
        pairs = [pairs_table("image", "text", [(n, n) for n in range(num_rows)])]
        return Manifest(dataset="tiny", protocol="tiny", items=items, pairs=dict(pairs))

    def create(self, path: StorePath, num_rows: int = NUM_ROWS) -> TargetStore:
        """A store without shards."""
        store = TargetStore.create(path, self.manifest(num_rows))
        for key, fields in FIELDS.items():
            modality, name = key.split("/")
            fieldset = FieldSet(
                name=name,
                modality=modality,
                fields=fields,
                batch_size=8,
                rows_per_shard=ROWS_PER_SHARD,
                provenance={"recipe": {"model": "drawn"}, "command": "pipeline precompute"},
            )
            scale = Int8().calibrate(self.values["quantised"])["scale"]
            store.add(fieldset, {name: scale for field in fields for name in field.constants})
        return store

    def write_shard(self, store: TargetStore, key: str, shard: int) -> None:
        """One shard, or what it lacks since the store grew."""
        rows = store.shard_rows(key, shard)[store.kept_rows(key, shard) :]
        part = {field.name: self.values[field.name][rows.start : rows.stop] for field in FIELDS[key]}
        faults = [Quarantined(row=3, id="i3", file="", reason="not an image")] if 3 in rows else []
        store.write_shard(key, shard, part, faults)

    def finish(self, store: TargetStore) -> TargetStore:
        """Write what is missing."""
        for key in FIELDS:
            for shard in store.missing(key):
                self.write_shard(store, key, shard)
        return store

    def write(self, path: StorePath, num_rows: int = NUM_ROWS) -> TargetStore:
        """The whole store."""
        return self.finish(self.create(path, num_rows))

    def require_equal(self, store: TargetStore, other: TargetStore) -> None:
        """Every stored bit of the two, in random order."""
        rows = np.random.default_rng(1).permutation(store.manifest.num_rows("image"))
        for reference in self.references:
            ours, theirs = (one.read(reference, rows, check=True) for one in (store, other))
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.fixture(scope="session")
def sample() -> Sample:
    """The store's content."""
    return Sample()


@pytest.fixture(scope="session")
def whole(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store on this machine's disk."""
    path = tmp_path_factory.mktemp("whole") / "tiny.zarr"
    sample.write(path)
    return path


@pytest.fixture
def remote(bucket: str, whole: Path, s3: Any) -> str:
    """A whole store at s3://; that it is as a store writes it is the first test's claim."""
    url = f"{bucket}/folder/tiny.zarr"
    s3.client().pipe({f"{url}/{key}": content for key, content in everything(whole).items()})
    return url


@pytest.fixture
def files() -> Callable[[StorePath], dict[str, bytes]]:
    """{key: content} of everything that lies at a path or URL, locks and all."""
    return everything


def everything(path: StorePath) -> dict[str, bytes]:
    """{key: content}."""
    if isinstance(path, Path):
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    from fsspec.core import url_to_fs

    files, root = url_to_fs(path, use_listings_cache=False)
    return {place[len(root) + 1 :]: files.cat_file(place) for place in files.find(root)}
