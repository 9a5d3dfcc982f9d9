"""Exhaustive search: every query is compared with the whole gallery, so its recall is 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Inner products in float32, 4 bytes a value."""

    kind: Literal["flat"] = "flat"

    def factory(self, num_vectors: int, width: int) -> str:
        """FAISS's factory string for a gallery [num_vectors, width]."""
        return "Flat"
