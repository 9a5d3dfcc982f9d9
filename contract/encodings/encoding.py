"""What every encoding has: the arrays that it stores for a field, and the way there and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Layout = tuple[str, Shape]  # dtype and shape of one row

# Half a megabyte of float32 stays in a core's cache from one pass over it to the next.
BLOCK_VALUES = 1 << 17


class NotEncodableError(ValueError):
    """Values that the encoding can't hold; `row` is the first bad row of the batch."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


@dataclass(frozen=True, kw_only=True)
class ArrayEncoding:
    """The defaults: one stored array, made of the field's values, and nothing kept beside it.

    `shape` is everywhere that of one row, in logical values. `decode` is written once over an array namespace: it
    takes NumPy arrays or torch tensors, so that a trainer decodes on its own device.
    """

    # What `encode` takes: the field's values (""), or something else that the encoder gives, such as "pixels".
    source: ClassVar[str] = ""
    # Names of the arrays that are kept once for the whole field.
    constants: ClassVar[tuple[str, ...]] = ()
    # The dtype of the one stored array, or of its bits, where decoding is no more than a cast of it to float32.
    casts: ClassVar[str] = ""
    # Whether these are measured on a sample of the values; otherwise the encoder gives them.
    calibrated: ClassVar[bool] = False

    def input(self, shape: Shape) -> Layout:
        """The dtype and the shape of one row of what `encode` takes."""
        return "float32", shape

    def stored(self, shape: Shape) -> dict[str, Layout]:
        """Name suffix -> (dtype, shape of one row) of each stored array."""
        raise AssertionError("every encoding says what it stores")

    def logical_dtypes(self, shape: Shape) -> dict[str, str]:
        """Name suffix -> dtype, for stored arrays whose dtype Zarr has no name for."""
        return {}

    def calibrate(self, sample: Array) -> dict[str, Array]:
        """The constants, from a sample of values [n, *shape]."""
        return {}

    def num_clipped(self, values: Array, constants: Mapping[str, Array]) -> int:
        """How many values lie outside what the constants allow for, and are moved to the nearest one inside."""
        return 0

    def encode(self, values: Array, constants: Mapping[str, Array]) -> dict[str, Array]:
        """Values [n, ...] -> the stored arrays by suffix."""
        raise AssertionError("every encoding encodes")

    def decode(self, stored: Mapping[str, Any], constants: Mapping[str, Any], shape: Shape, xp: Any) -> Any:
        """The stored arrays by suffix -> values [n, *shape], perhaps in their memory; `xp` is numpy or torch."""
        raise AssertionError("every encoding decodes")


def require_finite(values: Array) -> None:
    """Raise `NotEncodableError` with the counts if anything is NaN or infinite."""
    if all(np.isfinite(block).all() for block in blocks(values)):
        return
    num_nan = int(np.isnan(values).sum())
    num_infinite = int(np.isinf(values).sum())
    raise NotEncodableError(
        first_row(~np.isfinite(values)),
        f"{num_nan + num_infinite:,} of {values.size:,} values are not finite ({num_nan:,} NaN, "
        f"{num_infinite:,} infinite)",
    )


def refuse(bad: npt.NDArray[np.bool_], values: Array, why: str) -> None:
    """Raise `NotEncodableError` with the count and the largest of them if any of the values is bad."""
    if bad.any():
        # In float64, since the smallest integer's magnitude is no integer of its dtype.
        largest = values[bad][np.abs(values[bad].astype(np.float64)).argmax()].item()
        raise NotEncodableError(
            first_row(bad),
            f"{int(bad.sum()):,} of {values.size:,} values {why}; the largest of them is "
            + (f"{largest:,}" if isinstance(largest, int) else f"{largest:g}"),
        )


def first_row(bad: npt.NDArray[np.bool_]) -> int:
    """The first row in which anything is True."""
    return int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0])


def blocks(values: Array) -> Iterator[Array]:
    """The rows of [n, ...] in runs of about `BLOCK_VALUES` values, as views."""
    step = max(1, BLOCK_VALUES // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values), step):
        yield values[start : start + step]


def cast(array: Any, dtype: str, xp: Any) -> Any:
    """The array in another dtype: numpy.ndarray has astype, torch.Tensor has to."""
    return array.astype(dtype) if xp is np else array.to(getattr(xp, dtype))


def reinterpret(array: Any, dtype: str, xp: Any) -> Any:
    """The array's bits as a dtype of the same width that NumPy alone does not know, such as bfloat16."""
    if xp is not np:
        return array.view(getattr(xp, dtype))
    import ml_dtypes

    return array.view(getattr(ml_dtypes, dtype))


def log_softmax(logits: Array) -> Array:
    """Over the last axis of float [n, C]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
