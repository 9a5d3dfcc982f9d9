"""The Zarr metadata (zarr.json) of a store: as zarr-python writes it, and recognised again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from contract.errors import StoreError
from contract.kept import advice
from contract.schema import FieldSet, chunk_shape, row_bytes
from contract.storage import Storage

Files = dict[str, bytes]
Shape = tuple[int, ...]


def of_store(attributes: Mapping[str, Any], modalities: Sequence[str]) -> Files:
    """The root with its attributes, a group for each modality, and a place that no other reader looks into."""
    import zarr

    content: dict[str, Any] = {}
    root = zarr.open_group(zarr.storage.MemoryStore(content), mode="w", attributes={"precept": dict(attributes)})
    # An array node without elements: Zarr readers do not look for further nodes beneath an array.
    root.create_array("precept", shape=(0,), dtype="uint8", chunks=(1,))
    for modality in modalities:
        root.create_group(modality)
    return _files(content)


def of_fieldset(
    fieldset: FieldSet, num_rows: int, constants: Mapping[str, Any], attributes: Mapping[str, Any]
) -> Files:
    """The FieldSet's group, last, and before it the arrays of its fields and of its constants."""
    import zarr

    content: dict[str, Any] = {}
    root = zarr.open_group(zarr.storage.MemoryStore(content), mode="w")
    group = root.create_group(fieldset.key, attributes={"precept": dict(attributes)})
    dtypes = {name: dtype for field in fieldset.fields for name, dtype in field.logical_dtypes.items()}
    for name, (dtype, _) in fieldset.arrays.items():
        shard, chunk = _shapes(fieldset, name)
        group.create_array(
            name,
            shape=(num_rows, *shard[1:]),
            dtype=dtype,
            chunks=chunk,
            shards=shard,
            compressors=[{"name": "crc32c"}],
            attributes={"dtype": dtypes[name]} if name in dtypes else {},
        )
    for name, array in constants.items():
        group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=array.shape,
            shards=array.shape,
            compressors=[{"name": "crc32c"}],
        )
    files = {key: value for key, value in _files(content).items() if key.startswith(f"{fieldset.key}/")}
    last = f"{fieldset.key}/zarr.json"
    return {key: files[key] for key in [*(key for key in files if key != last), last]}


def resized(metadata: bytes, num_rows: int) -> bytes:
    """An array's metadata with another number of rows."""
    tree = json.loads(metadata)
    tree["shape"][0] = num_rows
    return json.dumps(tree, indent=2).encode()


def read(files: Storage, key: str, *names: str) -> dict[str, Any]:
    """The content of a zarr.json, which has these names."""
    try:
        tree = json.loads(files.read(key))
        if not isinstance(tree, dict) or not isinstance(tree.get("attributes", {}), dict):
            raise ValueError("no object where one belongs")
        if lacking := [name for name in names if name not in tree]:
            raise ValueError(f"it says no {lacking[0]}")
        if "shape" in names and not (isinstance(tree["shape"], list) and tree["shape"]):
            raise ValueError(f"its shape is {tree['shape']!r}")
    except (FileNotFoundError, ValueError) as error:
        raise StoreError(
            f"{files.locate(key)}: the store's metadata is missing or damaged: {error}; {advice(files.path)}"
        ) from error
    return tree


def is_of(metadata: Mapping[str, Any], fieldset: FieldSet, name: str) -> bool:
    """Whether an array's metadata says the dtype and the shape that a row must have."""
    dtype, (shard, _) = fieldset.arrays[name][0], _shapes(fieldset, name)
    return (metadata["data_type"], metadata["shape"][1:]) == (dtype, list(shard[1:]))


def is_plain(metadata: Mapping[str, Any], fieldset: FieldSet, name: str) -> bool:
    """Whether an array's shards lie as `contract.shard` writes them, by its metadata."""
    shard, chunk = _shapes(fieldset, name)
    try:
        (codec,) = metadata["codecs"]
        inner = codec["configuration"]
        codecs = [*inner["codecs"], *inner["index_codecs"]]
        return (
            codec["name"] == "sharding_indexed"
            and [part["name"] for part in codecs] == ["bytes", "crc32c"] * 2
            and {part.get("configuration", {}).get("endian", "little") for part in codecs} == {"little"}
            and inner.get("index_location", "end") == "end"
            and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and metadata["chunk_grid"]["configuration"]["chunk_shape"] == list(shard)
            and inner["chunk_shape"] == list(chunk)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _shapes(fieldset: FieldSet, name: str) -> tuple[Shape, Shape]:
    """Of a shard and of an inner chunk."""
    dtype, shape = fieldset.arrays[name]
    rows, views = chunk_shape(row_bytes(dtype, shape), fieldset.views_per_row, fieldset.rows_per_shard)
    if fieldset.num_views == 0:
        return (fieldset.rows_per_shard, *shape), (rows, *shape)
    return (fieldset.rows_per_shard, fieldset.views_per_row, *shape), (rows, views, *shape)


def _files(content: Mapping[str, Any]) -> Files:
    return {key: buffer.to_bytes() for key, buffer in content.items()}
