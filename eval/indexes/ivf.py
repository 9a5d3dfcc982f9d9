"""Inverted lists: the gallery lies in cells around centroids, and a query looks into the `nprobe` nearest cells.

Sivic and Zisserman, "Video Google: a text retrieval approach to object matching in videos", ICCV 2003.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# Below, k-means has too little to go by: FAISS warns.
VECTORS_PER_CELL = 39


@dataclass(frozen=True, kw_only=True)
class IVF:
    """Float32 vectors in 4 sqrt(n) cells, or as many as 39 vectors each allow."""

    kind: Literal["ivf"] = "ivf"

    def factory(self, num_vectors: int, width: int) -> str:
        """FAISS's factory string for a gallery [num_vectors, width]."""
        return f"IVF{num_cells(num_vectors)},Flat"


def num_cells(num_vectors: int) -> int:
    """How many cells a gallery is cut into."""
    return max(1, min(4 * math.isqrt(num_vectors), num_vectors // VECTORS_PER_CELL))
