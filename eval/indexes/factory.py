"""Any index that FAISS's factory knows, such as "IVF1024,PQ32": see FAISS's wiki, "The index factory"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Factory:
    """The index that the `string` says, whatever the gallery's size."""

    kind: Literal["factory"] = "factory"
    string: str

    def factory(self, num_vectors: int, width: int) -> str:
        """FAISS's factory string for a gallery [num_vectors, width]."""
        return self.string
