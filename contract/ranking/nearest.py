"""The exact nearest neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from contract.ranking.product import Matmul, Product
from contract.ranking.threads import in_parallel
from contract.ranking.vectors import (
    Double,
    Floats,
    Rows,
    Vectors,
    blocks,
    close_scores,
    exact_tile,
    in_order,
    places,
)

# Above this share of candidates in a tile, one exact product is cheaper than pair after pair.
CROWDED = 1 / 32
# Candidates of a block that are kept before the best are picked exactly: where many tie, all would stay.
MOST_DOUBTS = 1 << 18


def nearest(
    queries: Floats, gallery: Floats, gallery_ids: npt.ArrayLike, k: int, *, product: Product | None = None
) -> Rows:
    """The `k` best gallery rows of each query, int64 [q, k], in the same exact order as `rank` counts in.

    `queries` float [q, d] and `gallery` float [g, d] are brought to unit length; `gallery_ids` str [g], each once.
    """
    left, right = Vectors(queries, "query"), Vectors(gallery, "gallery")
    assert 1 <= k <= len(right)
    place, product = places(gallery_ids), product or Matmul()

    def find(rows: slice) -> Rows:
        query, item = _settled(left, right, *_candidates(left, right, rows, k, product, place), k, place)
        first = np.searchsorted(query, np.arange(rows.start, rows.stop))
        best: Rows = item[first[:, None] + np.arange(k)]
        return best

    found = list(in_parallel(find, [*blocks(len(left), product.tile[0])]))
    return np.concatenate(found) if found else np.empty((0, k), np.int64)


def _candidates(
    left: Vectors, right: Vectors, rows: slice, k: int, product: Product, place: Rows
) -> tuple[Rows, Rows]:
    """(query, item), int64 [m] each: of every query of a block at least its k best."""
    height, width = rows.stop - rows.start, product.tile[1]
    bounds = np.full(height, -np.inf, np.float32)
    buffer = np.empty(height * min(width, len(right)), np.float32)
    query, item, score = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    for columns in blocks(len(right), width):
        num = columns.stop - columns.start
        tile = buffer[: height * num].reshape(height, num)
        product(left.single[rows], right.single[columns], tile)
        if not columns.start and num > k:
            bounds = np.partition(tile, num - k, axis=1)[:, num - k] - 2 * right.margin
        flat = np.flatnonzero(tile >= bounds[:, None].astype(np.float32))
        if len(flat) > CROWDED * tile.size + 2 * height * k:
            flat = _best_of_tile(exact_tile(left, right, rows, columns), place[columns], k)
        query = np.concatenate([query, flat // num])
        item = np.concatenate([item, flat % num + columns.start])
        score = np.concatenate([score, tile.ravel()[flat]])
        # What the k-th best so far beats for sure is dropped.
        order = np.lexsort((-score, query))
        query, item, score = query[order], item[order], score[order]
        last = np.searchsorted(query, np.arange(height)) + k - 1
        has_k = np.bincount(query, minlength=height) >= k
        bounds[has_k] = score[last[has_k]] - 2 * right.margin
        kept = score >= bounds[query]
        query, item, score = query[kept], item[kept], score[kept]
        if len(query) > MOST_DOUBTS + 2 * height * k:
            query, item = _settled(left, right, query + rows.start, item, k, place)
            query -= rows.start
            score = close_scores(left, right, query + rows.start, item).astype(np.float32)
    return query + rows.start, item


def _best_of_tile(scores: Double, place: Rows, k: int) -> Rows:
    """Where the k best of each row of `scores` float64 [h, w] stand in it, flattened, int64 [h * k]."""
    by_place = np.argsort(place)
    best = by_place[np.argsort(-scores[:, by_place], axis=1, kind="stable")[:, :k]]
    flat: Rows = (best + scores.shape[1] * np.arange(len(scores))[:, None]).ravel()
    return flat


def _settled(left: Vectors, right: Vectors, query: Rows, item: Rows, k: int, place: Rows) -> tuple[Rows, Rows]:
    """The k best of each query among these (query, item), int64 [m] each, by query and from the best on."""
    order = in_order(left, right, query, item, close_scores(left, right, query, item), place)
    query, item = query[order], item[order]
    first = np.arange(len(query)) - np.searchsorted(query, query) < k
    return query[first], item[first]
