"""Exhaustive search: every query is compared with the whole gallery (FAISS IndexFlatIP), so its recall is 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Inner products in float32, 4 bytes a value."""

    kind: Literal["flat"] = "flat"

    def build(self, gallery: npt.NDArray[np.float32]) -> Any:
        """A FAISS index over `gallery`, float32 [n, d] of unit length."""
        import faiss

        index = faiss.IndexFlatIP(gallery.shape[1])
        index.add(gallery)
        return index
