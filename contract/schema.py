"""What a store says of its arrays: fields, and the FieldSets that one frozen encoder made in one go."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np

from contract import fingerprint
from contract.encodings import Encoding, Float16, fidelity

ROWS_PER_SHARD = 512
# A shard of rows as small as token ids would be a tiny file; an inner chunk of them a tinier one.
SMALL_ROW_BYTES = 16 * 1024
SMALL_ROWS_PER_SHARD = 4096
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Field:
    """One named array of a FieldSet: `shape` is that of one row, in logical values.

    `about` holds what a reader needs beside the values: geometry of patches, class names, the temperature at
    which they are a distribution.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Stored array's name -> (dtype, shape of one row)."""
        return {self._named(suffix): layout for suffix, layout in self.encoding.stored(self.shape).items()}

    @property
    def logical_dtypes(self) -> dict[str, str]:
        """Stored array's name -> dtype that its bits are to be read as, where Zarr has no name for it."""
        return {self._named(suffix): name for suffix, name in self.encoding.logical_dtypes(self.shape).items()}

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the arrays that are kept once for the field."""
        return tuple(self._named(suffix) for suffix in self.encoding.constants)

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes in the store, checksums apart."""
        return sum(row_bytes(dtype, shape) for dtype, shape in self.arrays.values())

    def encode(self, values: Any, constants: Mapping[str, Any]) -> dict[str, Any]:
        """What the encoding takes [n, ...] -> the stored arrays by name."""
        encoded = self.encoding.encode(values, self._suffixed(constants, self.encoding.constants))
        return {self._named(suffix): array for suffix, array in encoded.items()}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], xp: Any) -> Any:
        """The stored arrays and the constants by name -> logical values [n, *shape]; `xp` is numpy or torch."""
        arrays = self._suffixed(stored, self.encoding.stored(self.shape))
        return self.encoding.decode(arrays, self._suffixed(constants, self.encoding.constants), self.shape, xp)

    def calibrate(self, sample: Any) -> dict[str, Any]:
        """The constants by name, measured on values [n, *shape]."""
        return {self._named(suffix): array for suffix, array in self.encoding.calibrate(sample).items()}

    def num_clipped(self, values: Any, constants: Mapping[str, Any]) -> int:
        """Values that the encoding moves to the nearest one that its constants allow."""
        return self.encoding.num_clipped(values, self._suffixed(constants, self.encoding.constants))

    def error(self, values: Any, decoded: Any) -> fidelity.Figures:
        """How far decoded values [n, *shape] are from the encoder's own; {} for what is not a vector of numbers."""
        if not self.shape or self.encoding.kind == "int32":
            return {}
        return (fidelity.distributions if "temperature" in self.about else fidelity.vectors)(values, decoded)

    def _named(self, suffix: str) -> str:
        return f"{self.name}.{suffix}" if suffix else self.name

    def _suffixed(self, arrays: Mapping[str, Any], suffixes: Any) -> dict[str, Any]:
        return {suffix: arrays[self._named(suffix)] for suffix in suffixes}


@dataclass(frozen=True, kw_only=True)
class FieldSet:
    """What one frozen encoder, with one preprocessing, produced for one modality.

    With `num_views` K > 0 every item has K + 1 rows in each array: view 0 is the evaluation view, the others
    are augmentations, and all fields of a view belong to the same pixels or samples. `provenance` says how the
    values came to be (encoder, weights' hash, preprocessing, augmentation, precision, versions, command). What
    can change the values is under its key "recipe" and makes, with the fields and the batch boundaries, the
    fingerprint; versions and the command are only told.
    """

    name: str
    modality: str
    fields: tuple[Field, ...]
    batch_size: int
    provenance: Mapping[str, Any]
    rows_per_shard: int = ROWS_PER_SHARD
    num_views: int = 0

    @property
    def key(self) -> str:
        """Its place in the store: "image/teacher"."""
        return f"{self.modality}/{self.name}"

    @property
    def views_per_row(self) -> int:
        """Stored views of one item."""
        return self.num_views + 1

    @cached_property
    def fingerprint(self) -> str:
        """Equal for FieldSets whose values are equal."""
        return fingerprint.of_tree(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint is made of, as JSON has it: a tuple that was read back is a list."""
        identity: dict[str, Any] = {
            # First, since it is what a person changed: a difference is told by its first part.
            "recipe": self.provenance.get("recipe", {}),
            "fields": {
                field.name: {
                    "shape": list(field.shape),
                    "encoding": asdict(field.encoding),
                    "about": dict(field.about),
                }
                for field in self.fields
            },
            "num_views": self.num_views,
            "batch_size": self.batch_size,
            "rows_per_shard": self.rows_per_shard,
        }
        return cast(dict[str, Any], json.loads(json.dumps(identity)))

    def difference(self, other: FieldSet) -> str:
        """The first part in which the two differ, in words: "recipe.model: 'a', not 'b'"; "" when equal."""
        return difference(self.identity, other.identity)

    def field(self, name: str) -> Field:
        """The field of that name; KeyError if there is none."""
        return {field.name: field for field in self.fields}[name]

    @cached_property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Stored array's name -> (dtype, shape of one row's one view), of all fields."""
        return {name: layout for field in self.fields for name, layout in field.arrays.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes in all fields, all of its views."""
        return self.views_per_row * sum(field.row_bytes for field in self.fields)


def shard_rows(fields: Sequence[Field], num_views: int = 0) -> int:
    """How many rows of these fields make a shard of a sensible size: a power of two."""
    small = sum(f.row_bytes for f in fields) < SMALL_ROW_BYTES
    most = (SMALL_ROWS_PER_SHARD if small else ROWS_PER_SHARD) // (num_views + 1)
    return 1 << max(0, most.bit_length() - 1)


def chunk_shape(bytes_per_view: int, views_per_row: int, rows_per_shard: int) -> tuple[int, int]:
    """Rows, a divisor of the shard's, and views in an inner chunk: one large view, or about 64 kB of small rows.

    A chunk of small views holds every view of its rows, so that rows lie in the file in the order of the array.
    """
    if 2 * bytes_per_view > CHUNK_BYTES:
        return 1, 1
    rows = 1
    while rows * 2 * bytes_per_view * views_per_row <= CHUNK_BYTES and rows_per_shard % (rows * 2) == 0:
        rows *= 2
    return rows, views_per_row


def row_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of one row of that dtype and shape."""
    return np.dtype(dtype).itemsize * math.prod(shape)


def difference(found: Any, expected: Any, at: str = "") -> str:
    """The first place where two trees differ, in words; "" when they are equal."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = difference(found.get(key), expected.get(key), f"{at}.{key}" if at else str(key))
            if inner:
                return inner
        return ""
    return "" if found == expected else f"{at}: {found!r}, not {expected!r}"
