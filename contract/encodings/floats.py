"""Floating point: each value on its own, in 4, 2 or 1 bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from contract.encodings.encoding import (
    Array,
    ArrayEncoding,
    Layout,
    Shape,
    cast,
    refuse,
    reinterpret,
    require_finite,
)


@dataclass(frozen=True, kw_only=True)
class Float16(ArrayEncoding):
    """IEEE half precision: 2 bytes a value, relative error at most 2^-11, magnitudes to 65,504.

    With `non_finite`, NaN and infinity are values like others (log-probabilities of masked classes, say).
    """

    casts: ClassVar[str] = "float16"

    kind: Literal["float16"] = "float16"
    non_finite: bool = False

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """One float16 array."""
        return {"": ("float16", shape)}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Float [n, ...] -> float16 [n, ...]."""
        return {"": _rounded(values, np.float16, self.kind, non_finite=self.non_finite)}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Float16 [n, ...] -> float32 [n, ...]."""
        return cast(stored[""], "float32", xp)


@dataclass(frozen=True, kw_only=True)
class Float32(ArrayEncoding):
    """IEEE single precision: 4 bytes a value, exact; `non_finite` as in `Float16`."""

    kind: Literal["float32"] = "float32"
    non_finite: bool = False

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """One float32 array."""
        return {"": ("float32", shape)}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Float [n, ...] -> float32 [n, ...]."""
        return {"": _rounded(values, np.float32, self.kind, non_finite=self.non_finite)}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Float32 [n, ...], as stored."""
        return stored[""]


@dataclass(frozen=True, kw_only=True)
class BFloat16(ArrayEncoding):
    """Brain floating point: 2 bytes a value, relative error at most 2^-8, the range of float32.

    Zarr has no such dtype: the bits are stored as uint16.
    """

    casts: ClassVar[str] = "bfloat16"

    kind: Literal["bfloat16"] = "bfloat16"
    non_finite: bool = False

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """One uint16 array of bfloat16 bits."""
        return {"": ("uint16", shape)}

    def logical_dtypes(self, shape: Shape) -> dict[str, str]:
        """What the bits are."""
        return {"": "bfloat16"}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Float [n, ...] -> uint16 [n, ...]."""
        import ml_dtypes

        return {"": _rounded(values, ml_dtypes.bfloat16, self.kind, non_finite=self.non_finite).view(np.uint16)}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Uint16 [n, ...] -> float32 [n, ...]."""
        return cast(reinterpret(stored[""], "bfloat16", xp), "float32", xp)


@dataclass(frozen=True, kw_only=True)
class Float8(ArrayEncoding):
    """E4M3 of Micikevicius et al. 2022 (arXiv 2209.05433): 1 byte a value, magnitudes to 448.

    The relative error is at most 2^-4 from 2^-6 on, and the error at most 2^-10 below. Zarr has no such dtype: the
    bits are stored as uint8.
    """

    casts: ClassVar[str] = "float8_e4m3fn"

    kind: Literal["float8"] = "float8"

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """One uint8 array of float8_e4m3fn bits."""
        return {"": ("uint8", shape)}

    def logical_dtypes(self, shape: Shape) -> dict[str, str]:
        """What the bits are."""
        return {"": "float8_e4m3fn"}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Float [n, ...] -> uint8 [n, ...]."""
        import ml_dtypes

        return {"": _rounded(values, ml_dtypes.float8_e4m3fn, self.kind, non_finite=False).view(np.uint8)}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Uint8 [n, ...] -> float32 [n, ...]."""
        return cast(reinterpret(stored[""], "float8_e4m3fn", xp), "float32", xp)


@dataclass(frozen=True, kw_only=True)
class Int32(ArrayEncoding):
    """Whole numbers: lengths, counts."""

    kind: Literal["int32"] = "int32"

    def input(self, shape: Shape) -> Layout:
        """Whole numbers."""
        return "int64", shape

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """One int32 array."""
        return {"": ("int32", shape)}

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Integer [n, ...] -> int32 [n, ...]."""
        assert np.issubdtype(values.dtype, np.integer), values.dtype
        limits = np.iinfo(np.int32)
        outside = (values > limits.max) | (values < limits.min)
        refuse(outside, values, "do not fit int32")
        return {"": np.asarray(values, np.int32)}

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """Int32 [n, ...], as stored."""
        return stored[""]


def _rounded(values: Array, dtype: Any, name: str, *, non_finite: bool) -> Array:
    """The values in `dtype`; NaN and infinity are errors unless allowed, and so is what becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.asarray(values).astype(dtype, copy=False)
    if not _all_finite(stored):
        import ml_dtypes

        if not non_finite:
            require_finite(values)
        lost = np.isfinite(values) & ~np.isfinite(stored)
        refuse(lost, values, f"do not fit {name}, whose largest is {float(ml_dtypes.finfo(dtype).max):g}")
    return stored


def _all_finite(stored: Array) -> bool:
    # Bits are ordered as magnitudes are, with infinity and NaN above all else: two maxima over what is stored take
    # a fifth of the time that np.isfinite takes for bfloat16, and no memory.
    width = stored.itemsize
    infinity = int(np.array(np.inf).astype(stored.dtype).view(f"u{width}"))
    positive, negative = (stored.view(f"{sign}{width}").max(initial=0) for sign in "iu")
    return bool(positive < infinity and negative < infinity + (1 << (8 * width - 1)))
