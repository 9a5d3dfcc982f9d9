"""The FieldSets of an HDF5 file: what they will be in a store, and their values as they are stored there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.encodings import Float16, Float32, Int32
from contract.encodings.encoding import refuse
from contract.schema import Field, FieldSet, shard_rows
from pipeline.hdf5 import layout
from pipeline.hdf5.contents import Array, Contents

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A FieldSet as it lies in a file.

    `mask` bool [N] is True for quarantined rows, whose values count as zeros; `exported` is the provenance that a
    file in our layout tells.
    """

    modality: str
    name: str
    fields: tuple[Field, ...]
    num_views: int
    batch_size: int
    mask: npt.NDArray[np.bool_]
    exported: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Its place in the layout and in the store."""
        return f"{self.modality}/{self.name}"

    def fieldset(self, contents: Contents, content: str, command: str) -> FieldSet:
        """The FieldSet of values whose hash is `content`."""
        names = {field.name: contents.names[f"{self.key}/{field.name}"] for field in self.fields}
        recipe: dict[str, Any] = {"kind": "hdf5", "content": content, "datasets": names}
        told = self.exported.get("recipe")
        if isinstance(told, dict) and "augmentation" in told:
            recipe["augmentation"] = told["augmentation"]  # by which a trainer knows FieldSets of the same views
        provenance = {"recipe": recipe, "file": contents.path.name, "command": command}
        return FieldSet(
            name=self.name,
            modality=self.modality,
            fields=self.fields,
            batch_size=self.batch_size,
            rows_per_shard=shard_rows(self.fields, self.num_views),
            num_views=self.num_views,
            provenance=provenance | ({"exported": dict(self.exported)} if self.exported else {}),
        )


def sources(contents: Contents) -> Iterator[Source]:
    """The FieldSets that the names make, with what our layout tells of them."""
    for key, names in contents.fields().items():
        modality, _, name = key.partition("/")
        group = key if contents.is_ours else "/"
        num_views = contents.number(group, "num_views", 0)
        yield Source(
            modality=modality,
            name=name,
            fields=tuple(_field(contents, f"{key}/{one}", num_views) for one in names),
            num_views=num_views,
            batch_size=contents.number(group, "batch_size", 1),
            mask=_mask(contents, f"{key}/{layout.QUARANTINED}", len(contents.dataset(f"{key}/{names[0]}"))),
            exported=contents.tree(group, "provenance"),
        )


def storable(values: Array, mask: npt.NDArray[np.bool_]) -> Array:
    """Values [n, ...] as an encoding takes them: zeros where bool [n] says, float64 as float32.

    `NotEncodableError` for what is beyond float32.
    """
    if mask.any():
        values = values.copy()
        values[mask] = 0
    if values.dtype.kind == "f" and values.dtype.itemsize > np.dtype(np.float32).itemsize:
        too_large = np.isfinite(values) & (np.abs(values) > FLOAT32_MAX)
        refuse(too_large, values, f"do not fit float32, whose largest is {FLOAT32_MAX:g}")
        return values.astype(np.float32)
    return values


def _field(contents: Contents, target: str, num_views: int) -> Field:
    dataset = contents.dataset(target)
    views = (num_views + 1,) if num_views else ()
    if dataset.shape[1 : 1 + len(views)] != views:
        raise contents.refusal(target, f"{num_views + 1} views for each item, as the attribute num_views says")
    told = contents.tree(contents.names[target], "encoding")
    return Field(
        name=target.rpartition("/")[2],
        shape=tuple(dataset.shape[1 + len(views) :]),
        encoding=_encoding(contents, target, non_finite=told.get("non_finite") is True),
        about=contents.tree(contents.names[target], "about"),
    )


def _encoding(contents: Contents, target: str, *, non_finite: bool) -> Float16 | Float32 | Int32:
    dtype = contents.dataset(target).dtype
    if dtype.kind in "iu":
        return Int32()
    if dtype.kind != "f":
        raise contents.refusal(target, "floating-point or whole numbers")
    is_half = dtype.itemsize == np.dtype(np.float16).itemsize
    return Float16(non_finite=non_finite) if is_half else Float32(non_finite=non_finite)


def _mask(contents: Contents, target: str, num_rows: int) -> npt.NDArray[np.bool_]:
    if target not in contents.names:
        return np.zeros(num_rows, bool)
    dataset = contents.dataset(target)
    if dataset.ndim != 1 or dataset.dtype.kind not in "biu":
        raise contents.refusal(target, "a bool for each item")
    return contents.read(target, range(num_rows)).astype(bool)
