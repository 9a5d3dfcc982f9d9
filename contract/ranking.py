"""Exact retrieval ranks, and the figures that are made of them.

    rank(query) = 1 + #(gallery items that score above its best positive) + #(ties that stand before it)

A score is a cosine; ties stand in ascending order of gallery id, so the order of rows never matters. Products
are taken in float32, tile by tile. Entries of such a product change with the tile's shape, so an item whose
score is within float32's error of the best positive's is scored again, exactly: a unit vector is cut into two
words, `high` in multiples of 2^-26 and `low` in multiples of 2^-46, and every sum in

    score(a, b) = high_a . high_b + (high_a . low_b + low_a . high_b)

fits the 53 bits of a float64 without rounding, so that its value does not depend on the order of additions
either. It differs from the true cosine by less than 1e-11, in practice by some 1e-15.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contract.errors import DataError

Floats = npt.NDArray[np.floating[Any]]
Double = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

KS = (1, 5, 10)
# Queries and gallery items in one product: 4 MB of scores, which stay in the processor's cache.
TILE = (256, 4096)
# Vectors that are cut into words at once: 1 MB an array at width 512.
WORDS_AT_ONCE = 256
# Above this share of near-ties in a tile's row, one exact product is cheaper than pair after pair.
CROWDED = 1 / 16
HIGH, LOW = 2.0**26, 2.0**46
# sqrt(width) * 2^-27 * HIGH * LOW, the largest sum in the second term, must stay under 2^53.
MAX_WIDTH = 2**16


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """The ranks of those queries that have a positive.

    `query_rows` int64 [r], ascending; `ranks` int64 [r], counted from 1; `tied` int64 [r], how many other gallery
    items score exactly as the best positive does. `num_without_positive` queries were left out.
    """

    query_rows: Rows
    ranks: Rows
    tied: Rows
    num_gallery: int
    num_without_positive: int


def rank(
    queries: Floats, gallery: Floats, pairs: Rows, gallery_ids: npt.ArrayLike, *, tile: tuple[int, int] = TILE
) -> Ranks:
    """Rank every query's best positive in the gallery.

    `queries` float [q, d] and `gallery` float [g, d] are brought to unit length (a zero vector stays zero and
    scores 0); `pairs` int64 [p, 2] holds (query row, gallery row) of every positive; `gallery_ids` str [g], each
    once. `tile` is (queries, gallery items) in one product: it changes the time and memory, never a rank.
    """
    left, right = _Vectors(queries, "query"), _Vectors(gallery, "gallery")
    places = _places(gallery_ids)
    best = _best_positives(left, right, pairs, places)
    ahead, tied = np.zeros_like(best.rows), np.zeros_like(best.rows)
    for g in _blocks(len(right), tile[1]):
        for q in _blocks(len(best.rows), tile[0]):
            rows, score, place = best.rows[q], best.scores[q], best.places[q]
            product = left.single[rows] @ right.single[g].T
            above, near = _compare(product, score, right.margin)
            ahead[q] += _count(above)
            for r, c, scores in _exact_scores(left, right, rows, g, near):
                ties = scores == score[r]
                first = (scores > score[r]) | (ties & (places[g][c] < place[r]))
                ahead[q] += _count_at(r, first & near[r, c], len(rows))
                tied[q] += _count_at(r, ties, len(rows))
    return Ranks(
        query_rows=best.rows,
        ranks=ahead + 1,
        tied=tied - 1,  # the best positive itself
        num_gallery=len(right),
        num_without_positive=len(left) - len(best.rows),
    )


def nearest(
    queries: Floats, gallery: Floats, gallery_ids: npt.ArrayLike, k: int, *, tile: tuple[int, int] = TILE
) -> Rows:
    """The `k` best gallery rows of each query, int64 [q, k], in the same exact order as `rank` counts in."""
    left, right = _Vectors(queries, "query"), _Vectors(gallery, "gallery")
    assert 1 <= k <= len(right)
    places = _places(gallery_ids)
    found = np.empty((len(left), k), dtype=np.int64)
    for q in _blocks(len(left), tile[0]):
        found[q] = _merge_nearest(left, right, np.arange(len(left))[q], places, k, tile[1])
    return found


def summarise(ranks: Ranks, ks: Sequence[int] = KS) -> dict[str, float | int]:
    """Recall at each of `ks` in percent, mean and median rank, and the counts behind them."""
    recalls = {f"R@{k}": 100.0 * float((ranks.ranks <= k).mean()) for k in ks}
    return {
        **recalls,
        "mean_rank": float(ranks.ranks.mean()),
        "median_rank": float(np.median(ranks.ranks)),
        "num_queries": len(ranks.ranks),
        "num_gallery": ranks.num_gallery,
        "ties": int((ranks.tied > 0).sum()),
        "queries_without_positive": ranks.num_without_positive,
    }


def random_baseline(num_gallery: int, num_positives: Rows, ks: Sequence[int] = KS) -> dict[str, float | int]:
    """What a random order of the gallery gives in expectation; `num_positives` int64 [q], of each query.

    With p positives among g items: R@K = 1 - C(g-p, K) / C(g, K), mean rank (g+1) / (p+1); the median is that of
    all queries' ranks taken together.
    """
    sizes, counts = np.unique(num_positives, return_counts=True)
    within = sum(
        count * _rank_distribution(num_gallery, int(size)) for size, count in zip(sizes, counts, strict=True)
    ) / len(num_positives)
    # Where one half is met exactly, the median lies between that rank and the next one.
    lower, upper = (int(np.argmax(within > 0.5 + side)) for side in (-1e-9, 1e-9))
    return {
        **{f"R@{k}": 100.0 * float(within[min(k, num_gallery)]) for k in ks},
        "mean_rank": float(((num_gallery + 1) / (num_positives + 1)).mean()),
        "median_rank": (lower + upper) / 2,
        "num_queries": len(num_positives),
        "num_gallery": num_gallery,
    }


class _Vectors:
    """Unit vectors: `single` float32 [n, d] for products, and in two float64 words on demand."""

    def __init__(self, raw: Floats, name: str) -> None:
        assert raw.ndim == 2
        assert raw.shape[1] <= MAX_WIDTH
        self.raw = raw
        self.single = np.empty(raw.shape, dtype=np.float32)
        # The words of the block that was asked for last: collapsed embeddings need them once for each query tile.
        self._block: slice | None = None
        self._block_words: tuple[Double, Double]
        for block in _blocks(len(raw), WORDS_AT_ONCE):
            unit = _unit(raw[block])
            if not (finite := np.isfinite(unit).all(axis=1)).all():
                row = block.start + int(np.argmin(finite))
                raise DataError(f"{name} row {row}: its embedding has values that are not finite")
            self.single[block] = unit

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def margin(self) -> float:
        """How far a float32 product of two unit vectors may be from their score, whatever adds it up.

        (d + 2) u for sum and operands, u = 2^-24, a second-order share, and a threshold's own rounding.
        """
        return float(1.01 * self.raw.shape[1] + 8) * 2.0**-24

    def words(self, rows: Rows | slice) -> tuple[Double, Double]:
        """(high, low), float64 [n, d] each: their sum is the unit vector, to 2^-47 a value."""
        if not isinstance(rows, slice):
            return self._cut(rows)
        if self._block != rows:
            self._block, self._block_words = rows, self._cut(rows)
        return self._block_words

    def _cut(self, rows: Rows | slice) -> tuple[Double, Double]:
        low = _unit(self.raw[rows])
        high = _round(low, HIGH)
        low -= high
        return high, _round(low, LOW)


class _Best(NamedTuple):
    """Each ranked query's row, its best positive's score and that one's place among the ids, [r] each."""

    rows: Rows
    scores: Double
    places: Rows


def _best_positives(left: _Vectors, right: _Vectors, pairs: Rows, places: Rows) -> _Best:
    if not len(pairs):
        raise DataError("no query has a positive in the gallery, so there is nothing to rank")
    blocks = _blocks(len(pairs), WORDS_AT_ONCE)
    scores = np.concatenate([_pair_scores(left, right, *pairs[block].T) for block in blocks])
    place = places[pairs[:, 1]]
    order = np.lexsort((place, -scores, pairs[:, 0]))
    rows, first = np.unique(pairs[order, 0], return_index=True)
    return _Best(rows.astype(np.int64), scores[order[first]], place[order[first]])


def _merge_nearest(left: _Vectors, right: _Vectors, rows: Rows, places: Rows, k: int, width: int) -> Rows:
    """The k best of one block of queries, int64 [b, k], merged tile by tile."""
    best = np.full((len(rows), k), -np.inf)
    best_rows = np.full((len(rows), k), -1, dtype=np.int64)
    for g in _blocks(len(right), width):
        product = left.single[rows] @ right.single[g].T
        # What can't reach the k-th best so far, here or in earlier tiles, needs no exact score.
        here = np.partition(product, -k, axis=1)[:, -k] if product.shape[1] >= k else np.full(len(rows), -np.inf)
        near = product >= (np.maximum(best[:, -1], here) - 2 * right.margin).astype(np.float32)[:, None]
        for r, c, scores in _exact_scores(left, right, rows, g, near):
            r, c, scores = (part[near[r, c]] for part in np.broadcast_arrays(r, c, scores))
            queries = np.concatenate([r, np.repeat(np.arange(len(rows)), k)])
            candidates = np.concatenate([c + g.start, best_rows.ravel()])
            scores = np.concatenate([scores, best.ravel()])
            order = np.lexsort((places[candidates], -scores, queries))
            first = np.searchsorted(queries[order], np.arange(len(rows)))
            kept = order[first[:, None] + np.arange(k)]
            best, best_rows = scores[kept], candidates[kept]
    return best_rows


def _compare(product: Floats, scores: Double, margin: float) -> tuple[Mask, Mask]:
    """Which entries of `product` are surely above their row's score, and which are too near to tell."""
    above = product > (scores + margin).astype(np.float32)[:, None]
    near = product >= (scores - margin).astype(np.float32)[:, None]
    near ^= above
    return above, near


def _exact_scores(
    left: _Vectors, right: _Vectors, rows: Rows, g: slice, near: Mask
) -> Iterator[tuple[Rows, Rows, Double]]:
    """Exact scores of at least the `near` entries of a tile, as (tile rows, tile columns, scores).

    Rows with few near entries come as three [m] arrays; crowded ones whole, as [r, 1], [1, w] and [r, w].
    """
    counts = _count(near)
    crowded = counts > CROWDED * near.shape[1]
    if crowded.any():
        r = np.flatnonzero(crowded)
        yield r[:, None], np.arange(near.shape[1])[None], _product_scores(left.words(rows[r]), right.words(g))
    if counts[~crowded].any():
        r, c = np.divmod(np.flatnonzero(near & ~crowded[:, None]), near.shape[1])
        for block in _blocks(len(r), WORDS_AT_ONCE):
            yield r[block], c[block], _pair_scores(left, right, rows[r[block]], c[block] + g.start)


def _pair_scores(left: _Vectors, right: _Vectors, left_rows: Rows, right_rows: Rows) -> Double:
    """Exact scores of pairs, float64 [m]."""
    (a, a_low), (b, b_low) = left.words(left_rows), right.words(right_rows)
    scores: Double = _dots(a, b) + (_dots(a, b_low) + _dots(a_low, b))
    return scores


def _product_scores(left: tuple[Double, Double], right: tuple[Double, Double]) -> Double:
    """Exact scores of all with all, float64 [n, m]: equal to `_pair_scores`, since neither rounds."""
    (a, a_low), (b, b_low) = left, right
    scores: Double = a @ b.T + (a @ b_low.T + a_low @ b.T)
    return scores


def _round(values: Double, steps: float) -> Double:
    """To the nearest multiple of 1 / steps, a power of two."""
    rounded = values * steps
    np.rint(rounded, out=rounded)
    rounded *= 1 / steps
    return rounded


def _dots(a: Double, b: Double) -> Double:
    dots: Double = np.einsum("nd,nd->n", a, b)
    return dots


def _unit(raw: Floats) -> Double:
    """Float [n, d] -> float64 [n, d] of unit length; zero stays zero, what is not finite stays so."""
    values = raw.astype(np.float64)
    norms = np.sqrt((values * values).sum(axis=1, keepdims=True))
    with np.errstate(invalid="ignore"):
        values /= np.where(norms == 0, 1.0, norms)
    return values


def _places(ids: npt.ArrayLike) -> Rows:
    """Each row's place in ascending order of id, int64 [n]."""
    order = np.argsort(np.asarray(ids), kind="stable")
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return places


def _rank_distribution(num_gallery: int, num_positives: int) -> Double:
    """P(rank <= k) of the best of `num_positives` in a random order, float64 [g + 1], k from 0."""
    drawn = np.arange(num_gallery)
    misses = np.clip(num_gallery - num_positives - drawn, 0, None) / (num_gallery - drawn)
    distribution: Double = 1.0 - np.concatenate([[1.0], np.cumprod(misses)])
    return distribution


def _count(flags: Mask) -> npt.NDArray[np.uint32]:
    # Six times as quick as np.count_nonzero(flags, axis=1).
    counts: npt.NDArray[np.uint32] = np.add.reduce(flags.view(np.uint8), axis=1, dtype=np.uint32)
    return counts


def _count_at(rows: Rows, flags: Mask, num_rows: int) -> Rows:
    """How many flags are set in each row; flags [m] stand at `rows` [m], flags [r, w] at `rows` [r, 1]."""
    counts = flags.reshape(len(rows), -1).sum(axis=1)
    return np.bincount(rows.ravel(), weights=counts, minlength=num_rows).astype(np.int64)


def _blocks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
