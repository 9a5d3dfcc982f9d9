"""Optimised product quantisation: the vectors are first rotated so that the codes lose least.

Ge, He, Ke and Sun, "Optimized product quantization", TPAMI 2014. A rotation changes no inner product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from eval.indexes.ivf import num_cells
from eval.indexes.ivfpq import num_bytes


@dataclass(frozen=True, kw_only=True)
class OPQ:
    """As `ivfpq`, with a trained rotation before it: the same size, a better recall, a longer training."""

    kind: Literal["opq"] = "opq"

    def factory(self, num_vectors: int, width: int) -> str:
        """FAISS's factory string for a gallery [num_vectors, width]."""
        return f"OPQ{num_bytes(width)},IVF{num_cells(num_vectors)},PQ{num_bytes(width)}"
