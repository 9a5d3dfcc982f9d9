"""What a store says of its arrays: fields, and the FieldSets that one frozen encoder made in one go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from contract import fingerprint
from contract.encoding import Encoding, Float16

ROWS_PER_SHARD = 512
# A shard of rows as small as token ids would be a tiny file; an inner chunk of them a tinier one.
SMALL_ROW_BYTES = 16 * 1024
SMALL_ROWS_PER_SHARD = 4096
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Field:
    """One named array of a FieldSet: `shape` is that of one row, in logical values.

    `about` holds what a reader needs beside the values: geometry of patches, class names, a softmax temperature.
    """

    name: str
    shape: tuple[int, ...]
    encoding: Encoding = Float16()  # noqa: RUF009 - frozen, so it may be shared
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Stored array's name -> (dtype, shape of one row)."""
        stored = self.encoding.stored(self.shape)
        return {_array_name(self.name, suffix): layout for suffix, layout in stored.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes in the store, checksums apart."""
        return sum(row_bytes(dtype, shape) for dtype, shape in self.arrays.values())

    def encode(self, values: Any) -> dict[str, Any]:
        """Logical values [n, *shape] -> the stored arrays by name."""
        return {_array_name(self.name, suffix): array for suffix, array in self.encoding.encode(values).items()}

    def decode(self, stored: Mapping[str, Any], xp: Any) -> Any:
        """The stored arrays by name -> logical values [n, *shape]; `xp` is numpy or torch."""
        suffixes = self.encoding.stored(self.shape)
        return self.encoding.decode({suffix: stored[_array_name(self.name, suffix)] for suffix in suffixes}, xp)


@dataclass(frozen=True, kw_only=True)
class FieldSet:
    """What one frozen encoder, with one preprocessing, produced for one modality.

    `provenance` says how the values came to be (encoder, weights' hash, preprocessing, precision, versions,
    command). What can change the values is under its key "recipe" and makes, with the fields and the batch
    boundaries, the fingerprint; versions and the command are only told.
    """

    name: str
    modality: str
    fields: tuple[Field, ...]
    batch_size: int
    provenance: Mapping[str, Any]
    rows_per_shard: int = ROWS_PER_SHARD

    @property
    def key(self) -> str:
        """Its place in the store: "image/teacher"."""
        return f"{self.modality}/{self.name}"

    @cached_property
    def fingerprint(self) -> str:
        """Equal for FieldSets whose values are equal."""
        return fingerprint.of_tree(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint is made of."""
        return {
            # First, since it is what a person changed: a difference is told by its first part.
            "recipe": self.provenance.get("recipe", {}),
            "fields": {
                field.name: {
                    "shape": list(field.shape),
                    "encoding": field.encoding.kind,
                    "about": dict(field.about),
                }
                for field in self.fields
            },
            "batch_size": self.batch_size,
            "rows_per_shard": self.rows_per_shard,
        }

    def difference(self, other: FieldSet) -> str:
        """The first part in which the two differ, in words: "recipe.model: 'a', not 'b'"; "" when equal."""
        return difference(self.identity, other.identity)

    def field(self, name: str) -> Field:
        """The field of that name; KeyError if there is none."""
        return {field.name: field for field in self.fields}[name]

    @property
    def row_bytes(self) -> int:
        """Bytes that one row takes in all fields."""
        return sum(field.row_bytes for field in self.fields)


def shard_rows(fields: Sequence[Field]) -> int:
    """How many rows of these fields make a shard of a sensible size."""
    return SMALL_ROWS_PER_SHARD if sum(f.row_bytes for f in fields) < SMALL_ROW_BYTES else ROWS_PER_SHARD


def chunk_rows(bytes_per_row: int, rows_per_shard: int) -> int:
    """Rows in an inner chunk, a divisor of the shard's: one for large rows, about 64 kB of small ones."""
    rows = 1
    while rows * 2 * bytes_per_row <= CHUNK_BYTES and rows_per_shard % (rows * 2) == 0:
        rows *= 2
    return rows


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


def _array_name(field_name: str, suffix: str) -> str:
    return f"{field_name}.{suffix}" if suffix else field_name
