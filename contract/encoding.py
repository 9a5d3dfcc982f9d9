"""One logical field <-> the arrays that are stored for it.

An encoding says which arrays a row of the field becomes, and turns values into them and back. `decode` is
written once over an array namespace: it takes NumPy arrays or torch tensors, so that a trainer can decode on
its own device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field as Discriminated

Array = npt.NDArray[Any]


class NotEncodableError(ValueError):
    """Values that the encoding can't hold; `row` is the first bad row of the batch."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True, kw_only=True)
class Float16:
    """IEEE half precision: 2 bytes a value, relative error at most 2^-11, magnitudes to 65,504."""

    kind: Literal["float16"] = "float16"

    def stored(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name suffix -> (dtype, shape of one row) of each stored array."""
        return {"": ("float16", shape)}

    def encode(self, values: Array) -> dict[str, Array]:
        """Float [n, ...] -> float16 [n, ...]."""
        _require_finite(values)
        with np.errstate(over="ignore"):
            stored = values.astype(np.float16)
        overflown = _first_row(~np.isfinite(stored))
        if overflown is not None:
            largest = float(np.abs(values[overflown]).max())
            raise NotEncodableError(overflown, f"{largest:g} does not fit float16; use encoding float32")
        return {"": stored}

    def decode(self, stored: Mapping[str, Any], xp: Any) -> Any:
        """Float16 [n, ...] -> float32 [n, ...]."""
        return _cast(stored[""], xp.float32)


@dataclass(frozen=True, kw_only=True)
class Float32:
    """IEEE single precision: 4 bytes a value, exact."""

    kind: Literal["float32"] = "float32"

    def stored(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name suffix -> (dtype, shape of one row) of each stored array."""
        return {"": ("float32", shape)}

    def encode(self, values: Array) -> dict[str, Array]:
        """Float [n, ...] -> float32 [n, ...]."""
        _require_finite(values)
        return {"": values.astype(np.float32)}

    def decode(self, stored: Mapping[str, Any], xp: Any) -> Any:
        """Float32 [n, ...], as stored."""
        return stored[""]


@dataclass(frozen=True, kw_only=True)
class Int32:
    """Whole numbers: lengths, counts, token ids."""

    kind: Literal["int32"] = "int32"

    def stored(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name suffix -> (dtype, shape of one row) of each stored array."""
        return {"": ("int32", shape)}

    def encode(self, values: Array) -> dict[str, Array]:
        """Integer [n, ...] -> int32 [n, ...]."""
        outside = _first_row((values > np.iinfo(np.int32).max) | (values < np.iinfo(np.int32).min))
        if outside is not None:
            raise NotEncodableError(outside, "a value does not fit int32")
        return {"": values.astype(np.int32)}

    def decode(self, stored: Mapping[str, Any], xp: Any) -> Any:
        """Int32 [n, ...], as stored."""
        return stored[""]


# A new encoding is a class above and one line here.
Encoding = Annotated[Float16 | Float32 | Int32, Discriminated(discriminator="kind")]
# Those that hold numbers with fractions: what a configuration may choose for an embedding.
FloatEncoding = Annotated[Float16 | Float32, Discriminated(discriminator="kind")]


def _require_finite(values: Array) -> None:
    bad = _first_row(~np.isfinite(values))
    if bad is not None:
        count = int((~np.isfinite(values[bad])).sum())
        raise NotEncodableError(bad, f"{count} of {values[bad].size} values are not finite (NaN or infinity)")


def _first_row(bad: npt.NDArray[np.bool_]) -> int | None:
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    return int(rows[0]) if len(rows) else None


def _cast(array: Any, dtype: Any) -> Any:
    # numpy.ndarray has astype, torch.Tensor has to.
    return array.astype(dtype) if isinstance(array, np.ndarray) else array.to(dtype)
