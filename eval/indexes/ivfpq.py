"""Product quantisation in inverted lists: a vector is kept as one byte for each stretch of it.

Jégou, Douze and Schmid, "Product quantization for nearest neighbor search", TPAMI 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eval.indexes.ivf import num_cells

VALUES_PER_BYTE = 8


@dataclass(frozen=True, kw_only=True)
class IVFPQ:
    """A byte for 8 values (or for as many more as the width divides into): a 32nd of float32. Needs 256 vectors."""

    kind: Literal["ivfpq"] = "ivfpq"

    def factory(self, num_vectors: int, width: int) -> str:
        """FAISS's factory string for a gallery [num_vectors, width]."""
        return f"IVF{num_cells(num_vectors)},PQ{num_bytes(width)}"


def num_bytes(width: int) -> int:
    """The length of a code: the largest divisor of the width that is at most an eighth of it."""
    return next(size for size in range(max(1, width // VALUES_PER_BYTE), 0, -1) if width % size == 0)
