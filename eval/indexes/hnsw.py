"""A graph of near neighbours in layers, through which a query walks with `efSearch` candidates at hand.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
World graphs", TPAMI 2018. Nothing is trained; threads add at once, so that two builds may differ in some edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class HNSW:
    """Float32 vectors with 32 edges each (64 in the lowest layer): 4 bytes a value and some 270 for the edges."""

    kind: Literal["hnsw"] = "hnsw"

    def factory(self, num_vectors: int, width: int) -> str:
        """FAISS's factory string for a gallery [num_vectors, width]."""
        return "HNSW32"
