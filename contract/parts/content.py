"""What a part of a file may hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from contract.undecodable import UndecodableError

# Encoded, or pixels: uint8 [h, w, 3] or [h, w].
Part = bytes | npt.NDArray[np.uint8]

# The most that one item may have: a hostile header asks for more memory than there is.
MAX_BYTES = 1 << 30
CHANNELS = (1, 3)


def pixels(row: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A copy of an image: uint8 [h, w, 3] or [h, w], of these, [h, w, 1], [3, h, w] or [1, h, w].

    Of a row that could be either, [3, h, 3], the channels are the last dimension.
    """
    if row.dtype != np.uint8 or row.ndim not in (2, 3) or 0 in row.shape:
        raise _no_pixels(row)
    if row.ndim == 3:
        if row.shape[2] not in CHANNELS:
            row = np.moveaxis(row, 0, 2)
        if row.shape[2] not in CHANNELS:
            raise _no_pixels(np.moveaxis(row, 2, 0))
        row = row[:, :, 0] if row.shape[2] == 1 else row
    return np.array(row, order="C")


def require_row(row: int, num_rows: int, where: str) -> None:
    """Refuse a row that is not there."""
    if row >= num_rows:
        raise UndecodableError(f"row {row:,} of {where}, which has {num_rows:,}")


def require_size(num_bytes: int, what: str) -> None:
    """Refuse what is larger than an item may be."""
    if num_bytes > MAX_BYTES:
        raise UndecodableError(f"{what} has {num_bytes:,} bytes, more than an item may have, {MAX_BYTES:,}")


def _no_pixels(row: npt.NDArray[Any]) -> UndecodableError:
    return UndecodableError(f"{row.dtype} {list(row.shape)}: pixels are uint8 [h, w], [h, w, 3] or [3, h, w]")
