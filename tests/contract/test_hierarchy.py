import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from contract import hierarchy
from contract.errors import StoreError
from contract.storage.folder import Folder


@pytest.fixture
def written(tiny, tmp_path: Path) -> Folder:
    """The metadata of a store of 20 rows, without any value."""
    files = Folder(tmp_path)
    metadata = hierarchy.of_store({"format": 2}, ["image", "text"])
    metadata |= hierarchy.of_fieldset(tiny.fieldset, 20, tiny.constants, {"fingerprint": "f"})
    for key, content in metadata.items():
        files.write(key, content)
    return files


def test_any_zarr_reader_lists_it_without_a_warning(tiny, written: Folder) -> None:
    found = dict(zarr.open_group(written.path, mode="r").members(max_depth=None))
    arrays = [f"{tiny.key}/{name}" for name in [*tiny.fieldset.arrays, *tiny.constants]]
    assert sorted(found) == sorted(["image", "text", "precept", tiny.key, *arrays])
    for name, (dtype, shape) in tiny.fieldset.arrays.items():
        array = found[f"{tiny.key}/{name}"]
        assert (array.shape, array.dtype, array.shards) == ((20, 3, *shape), dtype, (8, 3, *shape))
    assert found[f"{tiny.key}/patches"].chunks == (1, 1, 8300)
    assert found[f"{tiny.key}/wide"].chunks == (4, 3, 2100)
    assert found[f"{tiny.key}/wide"].attrs["dtype"] == "bfloat16"


def test_group_is_the_last_of_its_files(tiny) -> None:
    assert list(hierarchy.of_fieldset(tiny.fieldset, 20, tiny.constants, {}))[-1] == f"{tiny.key}/zarr.json"


def test_resized_metadata_is_that_of_a_store_made_larger(tiny) -> None:
    small = hierarchy.of_fieldset(tiny.fieldset, 20, tiny.constants, {})
    large = hierarchy.of_fieldset(tiny.fieldset, 33, tiny.constants, {})
    for name in tiny.fieldset.arrays:
        key = f"{tiny.key}/{name}/zarr.json"
        assert hierarchy.resized(small[key], 33) == large[key]


def test_what_was_written_is_recognised(tiny, written: Folder) -> None:
    for name in tiny.fieldset.arrays:
        metadata = hierarchy.read(written, f"{tiny.key}/{name}/zarr.json", "shape", "data_type")
        assert hierarchy.is_of(metadata, tiny.fieldset, name)
        assert hierarchy.is_plain(metadata, tiny.fieldset, name)


def inner(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata["codecs"][0]["configuration"]


OTHERWISE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "compressed": lambda of: inner(of)["codecs"].append({"name": "zstd", "configuration": {"level": 0}}),
    "big-endian": lambda of: inner(of)["codecs"][0]["configuration"].update(endian="big"),
    "index first": lambda of: inner(of).update(index_location="start"),
    "index unchecked": lambda of: inner(of)["index_codecs"].pop(),
    "other chunks": lambda of: inner(of)["chunk_shape"].__setitem__(0, 2),
    "other shards": lambda of: of["chunk_grid"]["configuration"]["chunk_shape"].__setitem__(0, 16),
    "other names": lambda of: of["chunk_key_encoding"]["configuration"].update(separator="."),
    "not sharded": lambda of: of.update(codecs=inner(of)["codecs"]),
    "another codec before": lambda of: of["codecs"].insert(0, {"name": "transpose"}),
    "no codecs": lambda of: of.pop("codecs"),
    "codecs that are none": lambda of: of.update(codecs=["bytes"]),
}


@pytest.mark.parametrize("otherwise", OTHERWISE)
def test_array_that_lies_otherwise_is_not_taken_for_ours(tiny, written: Folder, otherwise: str) -> None:
    metadata = hierarchy.read(written, f"{tiny.key}/features/zarr.json")
    OTHERWISE[otherwise](metadata)
    assert not hierarchy.is_plain(metadata, tiny.fieldset, "features")


@pytest.mark.parametrize("change", [{"data_type": "float32"}, {"shape": [20, 3, 3, 21]}, {"shape": [20, 3]}])
def test_array_of_another_dtype_or_row_is_another_array(tiny, written: Folder, change: dict[str, Any]) -> None:
    metadata = hierarchy.read(written, f"{tiny.key}/features/zarr.json")
    assert hierarchy.is_of(metadata | {"shape": [21, *metadata["shape"][1:]]}, tiny.fieldset, "features")
    assert not hierarchy.is_of(metadata | change, tiny.fieldset, "features")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"attributes": 1}', json.dumps({"shape": []}).encode()]
)
def test_damaged_metadata_is_one_line(tmp_path: Path, content: bytes) -> None:
    files = Folder(tmp_path)
    files.write("image/zarr.json", content)
    with pytest.raises(StoreError, match=r"image/zarr.json: the store's metadata is missing or damaged: .*repair"):
        hierarchy.read(files, "image/zarr.json", "shape", "data_type")
    with pytest.raises(StoreError, match=r"text/zarr.json: the store's metadata is missing"):
        hierarchy.read(files, "text/zarr.json")
