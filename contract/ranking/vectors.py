"""Vectors of unit length, and scores that do not depend on who adds them up.

A float32 product of two of them is wrong by at most `margin`, in whatever order BLAS adds. An exact score cuts each
unit vector into two words, `high` in multiples of 2^-26 and `low` in multiples of 2^-46. Every sum in

    score(a, b) = high_a . high_b + (high_a . low_b + low_a . high_b), to the nearest multiple of 2^-42

fits the 53 bits of a float64 without rounding, so that its value is one whatever the order. It differs from the
true cosine by less than 1e-11; the last rounding lets copies of a vector tie that are of other lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from contract.errors import DataError
from contract.ranking.threads import in_parallel

Floats = npt.NDArray[np.floating[Any]]
Single = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Vectors that are cut into words, or pairs that are scored, at once: 1 MB an array at width 512.
AT_ONCE = 256
HIGH, LOW, SCORE = 2.0**26, 2.0**46, 2.0**42
# sqrt(width) * 2^-27 * HIGH * LOW, the largest sum in the second term, must stay under 2^53.
MAX_WIDTH = 2**16
ULP = 2.0**-24
# How far from 1 a vector's length may be that is taken as it came.
UNIT = 4 * ULP
# How far the float64 product of two float32 unit vectors may be from their score: their lengths, or their rounding.
CLOSE = 3 * ULP + 2 * UNIT


class Vectors:
    """Unit vectors in an order of their own: `single` float32 [n, d] for products, in words on demand.

    `raw` float [m, d] are the vectors as they came, `order` int64 [n] which of them stand here.
    """

    def __init__(self, raw: Floats, name: str, order: Rows | None = None) -> None:
        assert raw.ndim == 2
        assert raw.shape[1] <= MAX_WIDTH
        if order is not None and np.array_equal(order, np.arange(len(raw))):
            order = None
        self._raw, self._order = raw, order
        self.single = raw if order is None and _is_unit(raw) else self._brought_to_unit_length(name)

    def __len__(self) -> int:
        return len(self.single)

    def _brought_to_unit_length(self, name: str) -> Single:
        num = len(self._raw if self._order is None else self._order)
        single = np.empty((num, self._raw.shape[1]), dtype=np.float32)

        def fill(block: slice) -> None:
            single[block], finite = _unit(self._raw[self._raw_rows(block)])
            if not finite.all():
                row = np.arange(len(self._raw))[self._raw_rows(block)][np.argmin(finite)]
                raise DataError(f"{name} row {row}: its embedding has values that are not finite")

        for _ in in_parallel(fill, [*blocks(num, AT_ONCE)]):
            pass
        return single

    def _raw_rows(self, rows: Rows | slice) -> Rows | slice:
        return rows if self._order is None else self._order[rows]

    @property
    def margin(self) -> float:
        """How far a float32 product may be from a score known to `CLOSE`, whatever the order of additions."""
        return float(1.01 * self.single.shape[1] + 10) * ULP + 2 * UNIT

    def words(self, rows: Rows | slice) -> tuple[Double, Double]:
        """(high, low), float64 [n, d] each: their sum is the unit vector, to 2^-47 a value."""
        low, _ = _unit(self._raw[self._raw_rows(rows)])
        high = _round(low, HIGH)
        low -= high
        return high, _round(low, LOW)


def pair_scores(left: Floats, right: Floats, pairs: Rows) -> Double:
    """The exact score of each pair (row of left, row of right), float64 [p]; a zero vector's is 0."""
    return exact_scores(Vectors(left, "query"), Vectors(right, "gallery"), *pairs.T)


def close_scores(left: Vectors, right: Vectors, left_rows: Rows, right_rows: Rows) -> Double:
    """Scores of pairs to `CLOSE`, float64 [m]."""
    scores = np.empty(len(left_rows))
    for block in blocks(len(scores), AT_ONCE):
        a, b = left.single[left_rows[block]], right.single[right_rows[block]]
        scores[block] = _dots(a.astype(np.float64), b.astype(np.float64))
    return scores


def exact_scores(left: Vectors, right: Vectors, left_rows: Rows, right_rows: Rows) -> Double:
    """Exact scores of pairs, float64 [m]."""
    scores = np.empty(len(left_rows))
    for block in blocks(len(scores), AT_ONCE):
        (a, a_low), (b, b_low) = left.words(left_rows[block]), right.words(right_rows[block])
        scores[block] = _round(_dots(a, b) + (_dots(a, b_low) + _dots(a_low, b)), SCORE)
    return scores


def exact_tile(left: Vectors, right: Vectors, left_rows: slice, right_rows: slice) -> Double:
    """Exact scores of all with all, float64 [h, w]: those of `exact_scores`, since nothing in either is rounded."""
    (a, a_low), (b, b_low) = left.words(left_rows), right.words(right_rows)
    return _round(a @ b.T + (a @ b_low.T + a_low @ b.T), SCORE)


def in_order(left: Vectors, right: Vectors, query: Rows, item: Rows, scores: Double, places: Rows) -> Rows:
    """How to sort pairs by query, then from the best on, ties by place: positions, int64 [m].

    `scores` float64 [m] are theirs to `CLOSE`, `places` int64 [g] those of the gallery's ids.
    """
    if (np.bincount(query) <= 1).all():
        return np.argsort(query)
    order = np.lexsort((-scores, query))
    # Neighbours in this order whose scores are too close to tell are scored exactly.
    close = np.zeros(len(order) + 1, bool)
    close[1:-1] = (np.diff(query[order]) == 0) & (np.diff(scores[order]) >= -2 * CLOSE)
    doubtful = order[close[1:] | close[:-1]]
    if not len(doubtful):
        return order
    scores = scores.copy()
    scores[doubtful] = exact_scores(left, right, query[doubtful], item[doubtful])
    return np.lexsort((places[item], -scores, query))


def blocks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `total`."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def places(ids: npt.ArrayLike) -> Rows:
    """Each row's place in ascending order of id, int64 [n]."""
    order = np.argsort(np.asarray(ids), kind="stable")
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order))
    return found


def _round(values: Double, steps: float) -> Double:
    """To the nearest multiple of 1 / steps, a power of two."""
    rounded = values * steps
    np.rint(rounded, out=rounded)
    rounded *= 1 / steps
    return rounded


def _dots(a: Double, b: Double) -> Double:
    dots: Double = np.einsum("nd,nd->n", a, b)
    return dots


def _is_unit(raw: Floats) -> TypeGuard[Single]:
    """Whether these are float32 [n, d] whose lengths are 1, to `UNIT`; then they need no copy."""
    if raw.dtype != np.float32:
        return False

    def is_unit(block: slice) -> bool:
        values = raw[block].astype(np.float64)
        # Half the bound on a length is one on its square; what is not finite is beyond it.
        return bool((np.abs(_dots(values, values) - 1) <= 2 * UNIT).all())

    return all(in_parallel(is_unit, [*blocks(len(raw), AT_ONCE)]))


def _unit(raw: Floats) -> tuple[Double, Mask]:
    """Float [n, d] -> float64 [n, d] of unit length, and which are finite, bool [n]; zero stays zero."""
    values = raw.astype(np.float64)
    if raw.dtype.itemsize > 4:
        # Squares of a float64 may overflow or vanish; a power of two changes no digit.
        _, exponents = np.frexp(np.abs(values).max(axis=1, initial=0.0, keepdims=True))
        values = np.ldexp(values, -exponents)
    norms = np.sqrt(_dots(values, values))
    finite = np.isfinite(norms)
    values *= (1 / np.where(finite & (norms > 0), norms, 1.0))[:, None]
    return values, finite
