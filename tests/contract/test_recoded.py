import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from contract import kept
from contract.errors import StoreError
from contract.storage.folder import Folder
from contract.store import TargetStore

ZSTD = zarr.codecs.ZstdCodec(level=3)
LAYOUTS: dict[str, dict[str, Any]] = {
    "zstd, sharded as before": {"chunks": (4, 3, 2100), "shards": (8, 3, 2100), "compressors": ZSTD},
    "zstd, other shards": {"chunks": (3, 1, 2100), "shards": (6, 3, 2100), "compressors": ZSTD},
    "zstd, chunks that cut views and channels": {"chunks": (5, 2, 1000), "compressors": ZSTD},
    "one chunk": {"chunks": (20, 3, 2100), "compressors": None},
    "other inner chunks": {"chunks": (2, 3, 2100), "shards": (8, 3, 2100), "compressors": [{"name": "crc32c"}]},
    "a chunk for each view": {"chunks": (1, 1, 2100), "shards": (8, 3, 2100), "compressors": [{"name": "crc32c"}]},
    "other names": {
        "chunks": (4, 3, 2100),
        "shards": (8, 3, 2100),
        "chunk_key_encoding": {"name": "v2", "separator": "."},
    },
}


def recode(path: Path, name: str, **layout: Any) -> None:
    """Write an array anew with zarr-python, as another program would."""
    old = zarr.open_array(path / name, mode="r")
    values, attributes = old[:], dict(old.attrs)
    shutil.rmtree(path / name)
    new = zarr.create_array(
        path,
        name=name,
        shape=values.shape,
        dtype=values.dtype,
        attributes=attributes,
        config={"write_empty_chunks": True},
        **layout,
    )
    new[:] = values
    kept.keep(Folder(path), {f"{name}/zarr.json": (path / name / "zarr.json").read_bytes()})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_array_that_was_encoded_anew_is_read_the_same(tiny, copy: Path, layout: str) -> None:
    recode(copy, f"{tiny.key}/wide", **LAYOUTS[layout])
    store, expected = TargetStore.open(copy), tiny.stored([f"i{n}" for n in range(20)])["wide"]
    rows, views = np.array([19, 0, 7, 7, 8, 16, 3]), np.array([0, 1, 2, 2, 0, 1, 1])
    for check in (False, True):
        found = store.read(f"{tiny.key}/wide", rows, views=views, check=check)["wide"]
        np.testing.assert_array_equal(found, expected[rows, views])
    out = {"wide": np.empty((2, 2100), np.uint16)}
    assert store.read(f"{tiny.key}/wide", [5, 4], out)["wide"] is out["wide"]
    np.testing.assert_array_equal(out["wide"], expected[[5, 4], 0])
    store.will_need(f"{tiny.key}/wide", rows)
    assert store.missing(tiny.key) == []
    assert [damage for *_, damage in store.verify() if damage] == []
    assert list(kept.faults(store.files)) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_that_is_gone_is_an_error_and_not_zeros(tiny, copy: Path, layout: str) -> None:
    recode(copy, f"{tiny.key}/wide", **LAYOUTS[layout])
    expected = tiny.stored([f"i{n}" for n in range(20)])["wide"]
    for path in [path for path in (copy / tiny.key / "wide").rglob("*") if path.is_file()]:
        if path.name == "zarr.json":
            continue
        content = path.read_bytes()
        path.unlink()
        store, errors = TargetStore.open(copy), 0
        for row in range(20):
            try:
                found = store.read(f"{tiny.key}/wide", [row] * 3, views=np.arange(3))["wide"]
            except StoreError as error:
                assert "is missing" in str(error)  # noqa: PT017
                errors += 1
            else:
                np.testing.assert_array_equal(found, expected[row])
        assert errors > 0
        assert store.missing(tiny.key)
        assert [damage for *_, damage in store.verify() if damage]
        path.write_bytes(content)


def test_flipped_byte_of_a_compressed_shard_is_found_by_verify(tiny, copy: Path) -> None:
    recode(copy, f"{tiny.key}/wide", **LAYOUTS["zstd, sharded as before"])
    path = copy / tiny.key / "wide/c/1/0/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    bad = [damage for *_, damage in TargetStore.open(copy).verify() if damage]
    assert [(damage.fieldset, damage.shard) for damage in bad] == [(tiny.key, 1)]


def test_array_that_was_encoded_anew_is_not_written(tiny, copy: Path, contents) -> None:
    recode(copy, f"{tiny.key}/wide", **LAYOUTS["zstd, sharded as before"])
    before = contents(copy)
    with pytest.raises(StoreError, match="wide: it was encoded anew by another program, so it can be read and not"):
        tiny.fill(TargetStore.open(copy), [1])
    assert contents(copy) == before


def test_metadata_with_chunks_of_nothing_is_one_line(tiny, copy: Path) -> None:
    path = copy / tiny.key / "length/zarr.json"
    tree = json.loads(path.read_text())
    tree["chunk_grid"]["configuration"]["chunk_shape"] = [8, 0]
    path.write_text(json.dumps(tree))
    with pytest.raises(StoreError, match=r"length/zarr.json: .*repair"):
        TargetStore.open(copy).missing(tiny.key)


def test_metadata_that_zarr_refuses_is_one_line(tiny, copy: Path) -> None:
    path = copy / tiny.key / "wide/zarr.json"
    path.write_text(path.read_text().replace('"sharding_indexed"', '"sharding_unheard_of"'))
    with pytest.raises(StoreError, match=r"wide/zarr.json: .*sharding_unheard_of.*repair"):
        TargetStore.open(copy).read(f"{tiny.key}/wide", [0])
