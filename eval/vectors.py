"""The vectors of a gallery, read a block at a time: they need not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from contract import fingerprint
from contract.embeddings import FIELD, FIELDSET
from contract.errors import DataError
from contract.store import TargetStore

Rows = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]

# 32 MB at width 512.
BLOCK_ROWS = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """`num_rows` vectors of `width` values; `load` gives rows of them, float [n, d]; `name` says whose they are."""

    name: str
    num_rows: int
    width: int
    load: Callable[[Rows], npt.NDArray[np.floating[Any]]]

    def read(self, rows: Rows) -> Embeddings:
        """Rows as float32 [n, d] of unit length; a zero vector stays zero, one that is not finite is refused."""
        vectors = np.empty((len(rows), self.width), np.float32)
        for start in range(0, len(rows), BLOCK_ROWS):
            vectors[start : start + BLOCK_ROWS] = self._unit(rows[start : start + BLOCK_ROWS])
        return vectors

    def blocks(self) -> Iterator[tuple[Rows, Embeddings]]:
        """All of them in order, as (rows, vectors)."""
        for start in range(0, self.num_rows, BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, self.num_rows))
            yield rows, self.read(rows)

    @cached_property
    def fingerprint(self) -> str:
        """Over every value."""
        return fingerprint.of_stream(block.data for _, block in self.blocks())

    def _unit(self, rows: Rows) -> npt.NDArray[np.float64]:
        loaded = self.load(rows).astype(np.float64)
        finite = np.isfinite(loaded).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{self.name} row {rows[np.argmin(finite)]}: its embedding has values that are not finite"
            )
        norms = np.linalg.norm(loaded, axis=1, keepdims=True)
        loaded /= np.where(norms == 0, 1.0, norms)
        return loaded


def stored(store: TargetStore, modality: str, rows: Rows) -> Vectors:
    """The student's vectors of these manifest rows, int64 [n], as they lie in its store."""
    reference = f"{modality}/{FIELDSET}/{FIELD}"
    return Vectors(
        name=f"{store.path}: {modality}",
        num_rows=len(rows),
        width=store.field(reference).shape[0],
        load=lambda places: store.load(reference, rows[places], check=True),
    )
