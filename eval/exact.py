"""Exact nearest neighbours in a gallery that is read a block at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from contract import ranking
from eval.vectors import Embeddings, Rows, Vectors


def nearest(queries: Embeddings, gallery: Vectors, ids: npt.NDArray[np.str_], k: int) -> Rows:
    """The `k` best gallery rows of each query, int64 [q, k], in the order of `contract.ranking.nearest`.

    `queries` float32 [q, d]; `ids` str [n] of the gallery. Whatever is among the best of all is among the best of
    its block and of those before it, so that only these are carried on.
    """
    assert 1 <= k <= gallery.num_rows
    rows, kept = np.empty(0, dtype=np.int64), np.empty((0, gallery.width), dtype=np.float32)
    found = np.empty((len(queries), 0), dtype=np.int64)
    for block_rows, block in gallery.blocks():
        rows, kept = np.concatenate([rows, block_rows]), np.concatenate([kept, block])
        found = ranking.nearest(queries, kept, ids[rows], min(k, len(rows)))
        best = np.unique(found)
        found = rows[found]
        rows, kept = rows[best], kept[best]
    return found


def scores(queries: Embeddings, gallery: Vectors, rows: Rows) -> npt.NDArray[np.float64]:
    """The cosines of each query, float32 [q, d], with its own `rows`, int64 [q, k]; -inf where a row is -1."""
    needed, places = np.unique(rows, return_inverse=True)
    vectors = gallery.read(np.maximum(needed, 0))[places.reshape(rows.shape)]
    found = np.einsum("qd,qkd->qk", queries, vectors, dtype=np.float64, casting="safe")
    return np.where(rows < 0, -np.inf, found)
