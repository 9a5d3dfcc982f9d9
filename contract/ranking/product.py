"""Products of float32 vectors, a tile at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from contract.ranking.vectors import Single


class Product(Protocol):
    """Scores of vectors: inner products, summed in float32 in any order.

    `tile` is how many rows of each side are asked for at once; it changes the time and memory, never a rank.
    """

    @property
    def tile(self) -> tuple[int, int]:
        """Rows of the left and of the right side."""
        ...

    def __call__(self, left: Single, right: Single, out: Single) -> None:
        """Write left . right^T, float32 [h, w], into `out`; `left` float32 [h, d], `right` float32 [w, d]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """BLAS; at most 20 MB a thread."""

    tile: tuple[int, int] = (2560, 2000)

    def __call__(self, left: Single, right: Single, out: Single) -> None:
        """See `Product`."""
        np.matmul(left, right.T, out=out)
