"""The exact rank of every positive, of queries on one side or on both."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contract.errors import DataError
from contract.ranking.product import Matmul, Product
from contract.ranking.threads import in_parallel, shares
from contract.ranking.vectors import (
    CLOSE,
    Double,
    Floats,
    Mask,
    Rows,
    Single,
    Vectors,
    blocks,
    close_scores,
    exact_scores,
    exact_tile,
    in_order,
    places,
)

Steps = npt.NDArray[np.int16]

# Above this share of near-ties in a tile, one exact product is cheaper than pair after pair.
CROWDED = 1 / 32
# What a byte can count.
BYTE = 255
# Rows of a tile, which are counted in bytes.
COMPARED = 190
# Positives that a thread scores in one go.
SCORED_BY_A_THREAD = 1 << 12
# Near-ties that are kept before they are looked at: 4 MB.
MOST_DOUBTS = 1 << 18
# Scores are compared as int16, which takes half the time; a step is two or three margins wide.
STEPS = np.float32(2.0**14)


@dataclass(frozen=True, kw_only=True, eq=False)
class EveryRank:
    """The ranks of every positive, int64 [p], ascending within a query; `queries` int64 [p] says whose they are.

    Queries are positions in the `query_rows` of the ranks.
    """

    queries: Rows
    ranks: Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """The ranks of those queries that have a positive.

    `query_rows` int64 [r], ascending; `ranks` int64 [r] of the best positive, counted from 1; `tied` int64 [r], how
    many other gallery items score exactly as that one does. `num_without_positive` queries were left out.
    `positives` are all of a query's positives, None where only the best was asked for.
    """

    query_rows: Rows
    ranks: Rows
    tied: Rows
    num_gallery: int
    num_without_positive: int
    positives: EveryRank | None = None


def rank(
    queries: Floats,
    gallery: Floats,
    pairs: Rows,
    gallery_ids: npt.ArrayLike,
    *,
    every: bool = True,
    product: Product | None = None,
) -> Ranks:
    """Rank every positive of every query in the gallery, or the best one alone, which takes less time.

    `queries` float [q, d] and `gallery` float [g, d] are brought to unit length (a zero vector stays zero and
    scores 0); `pairs` int64 [p, 2] holds (query row, gallery row) of every positive; `gallery_ids` str [g], each
    once.
    """
    pairs = _distinct(pairs, len(gallery))
    counts = np.bincount(pairs[:, 0], minlength=len(queries))
    # Those without a positive are left out of the product.
    rows, columns = _by_count(counts)[: np.count_nonzero(counts)], np.arange(len(gallery))
    left, right = Vectors(queries, "query", rows), Vectors(gallery, "gallery")
    pairs = _moved(pairs, rows, columns)
    scores = _scores(left, right, pairs)
    forward = _Side(left, right, pairs, scores, places(gallery_ids), every=every)
    _count(product or Matmul(), forward, None)
    return forward.ranks(rows, len(queries))


def rank_both(
    left: Floats,
    right: Floats,
    pairs: Rows,
    left_ids: npt.ArrayLike,
    right_ids: npt.ArrayLike,
    *,
    every: bool = True,
    product: Product | None = None,
) -> tuple[Ranks, Ranks]:
    """(left items ranking right ones, right items ranking left ones), from one product: see `rank`."""
    pairs = _distinct(pairs, len(right))
    rows, columns = (
        _by_count(np.bincount(pairs[:, end], minlength=len(side))) for end, side in enumerate((left, right))
    )
    a, b = Vectors(left, "query", rows), Vectors(right, "gallery", columns)
    pairs = _moved(pairs, rows, columns)
    scores = _scores(a, b, pairs)
    forward = _Side(a, b, pairs, scores, places(right_ids)[columns], every=every)
    backward = _Side(b, a, pairs[:, ::-1], scores, places(left_ids)[rows], every=every)
    _count(product or Matmul(), forward, backward)
    return forward.ranks(rows, len(left)), backward.ranks(columns, len(right))


class _Slot(NamedTuple):
    """The n-th best positive of every query that has so many, which are the first m.

    `items` int64 [m] are their positions in the gallery, `places` int64 [m] those of their ids, `scores` float64
    [m] theirs to `CLOSE`; `exact` float64 [m] are filled in on demand, NaN until then. What is over `upper` int16
    [m] steps is above, what is under `lower` below. `ahead` and `tied` int64 [m] are counted.
    """

    items: Rows
    places: Rows
    scores: Double
    exact: Double
    upper: Steps
    lower: Steps
    ahead: Rows
    tied: Rows


class _Side:
    """The queries of one direction, those with the most positives first, so that each slot has the first few.

    `pairs` int64 [p, 2] are positions in `queries` and `gallery`, `scores` float64 [p] theirs to `CLOSE`, `places`
    int64 [g] those of the gallery's ids.
    """

    def __init__(
        self, queries: Vectors, gallery: Vectors, pairs: Rows, scores: Double, places: Rows, *, every: bool
    ) -> None:
        self.queries, self.gallery, self._places, self._every = queries, gallery, places, every
        order = in_order(queries, gallery, pairs[:, 0], pairs[:, 1], scores, places)
        query, item, scores = pairs[order, 0], pairs[order, 1], scores[order]
        number = np.arange(len(query)) - np.searchsorted(query, query)
        self._slots = [
            self._slot(item[number == slot], scores[number == slot])
            for slot in range(int(number.max()) + 1 if every else 1)
        ]
        self._num_own = [0] * len(self._slots)
        self._lock = threading.Lock()

    def _slot(self, item: Rows, scores: Double) -> _Slot:
        margin = self.gallery.margin
        return _Slot(
            items=item,
            places=self._places[item],
            scores=scores,
            exact=np.full(len(item), np.nan),
            # Cut off towards zero, as the product is, so that the order stays.
            upper=(STEPS * (scores + margin)).astype(np.int16),
            lower=(STEPS * (scores - margin)).astype(np.int16),
            ahead=np.zeros(len(item), np.int64),
            tied=np.zeros(len(item), np.int64),
        )

    def count(self, tile: _Tile, q: slice, axis: int) -> None:
        """Count what a tile has above each positive of the queries `q`; its items lie along `axis`."""
        for slot in self._slots:
            part = slice(q.start, min(q.stop, len(slot.items)))
            if part.start >= part.stop:
                break
            ahead = tile.above(slot.upper[part], slot.lower[part], axis)
            with self._lock:
                slot.ahead[part] += ahead

    def settle(self, query: Rows, item: Rows, found: Single, exact: Double | None) -> None:
        """Count what was marked near a positive: by the product, as float64 has it, then exactly what is left.

        `query` and `item` int64 [m] may be near another; `found` float32 [m] are their scores times `STEPS`.
        `exact` float64 [m], where they are known, decide at once.
        """
        steps = found.astype(np.int16)
        for number, slot in enumerate(self._slots):
            of = np.minimum(query, len(slot.items) - 1)
            near = (query == of) & (steps >= slot.lower[of]) & (steps <= slot.upper[of])
            own = near & (item == slot.items[of])
            with self._lock:
                self._num_own[number] += own.sum()
            near ^= own
            if exact is None:
                self._compare(slot, of[near], item[near], found[near] / STEPS)
            else:
                self._decide(slot, of[near], item[near], exact[near])

    def ranks(self, order: Rows, num_queries: int) -> Ranks:
        """What was counted; `order` int64 says which rows the queries are, of `num_queries`."""
        # A product that has lost what a positive scores was not made in float32.
        assert self._num_own == [len(slot.items) for slot in self._slots], "a product is less exact than float32 is"
        first, num_ranked = self._slots[0], len(self._slots[0].items)
        by_row = np.argsort(order[:num_ranked])
        return Ranks(
            query_rows=order[:num_ranked][by_row],
            ranks=1 + first.ahead[by_row],
            tied=first.tied[by_row],
            num_gallery=len(self.gallery),
            num_without_positive=num_queries - num_ranked,
            positives=self._every_rank(np.argsort(by_row)) if self._every else None,
        )

    def _every_rank(self, place: Rows) -> EveryRank:
        """`place` int64 [r] is that of each query among the ranked ones."""
        queries = np.concatenate([place[: len(slot.items)] for slot in self._slots])
        # The slots of a query go from its best positive on.
        order = np.argsort(queries, kind="stable")
        return EveryRank(
            queries=queries[order], ranks=1 + np.concatenate([slot.ahead for slot in self._slots])[order]
        )

    def _compare(self, slot: _Slot, query: Rows, item: Rows, scores: Single) -> None:
        query, item = self._undecided(slot, query, item, scores, self.gallery.margin)
        close = close_scores(self.queries, self.gallery, query, item)
        query, item = self._undecided(slot, query, item, close, 2 * CLOSE)
        self._decide(slot, query, item, exact_scores(self.queries, self.gallery, query, item))

    def _undecided(
        self, slot: _Slot, query: Rows, item: Rows, scores: npt.NDArray[Any], margin: float
    ) -> tuple[Rows, Rows]:
        """Count those that are above their positive's score by more than the margin; what is nearer is left."""
        excess = scores - slot.scores[query]
        self._add(slot.ahead, query[excess > margin])
        near = np.abs(excess) <= margin
        return query[near], item[near]

    def _decide(self, slot: _Slot, query: Rows, item: Rows, scores: Double) -> None:
        """Count by exact scores, float64 [m]."""
        own = self._own_scores(slot, query)
        ties = scores == own
        first = (scores > own) | (ties & (self._places[item] < slot.places[query]))
        self._add(slot.ahead, query[first])
        self._add(slot.tied, query[ties])

    def _add(self, counts: Rows, query: Rows) -> None:
        with self._lock:
            np.add.at(counts, query, 1)

    def _own_scores(self, slot: _Slot, query: Rows) -> Double:
        """The exact scores of the positives of these queries, float64 [m], which may repeat."""
        new = np.unique(query[np.isnan(slot.exact[query])])
        slot.exact[new] = exact_scores(self.queries, self.gallery, new, slot.items[new])
        return slot.exact[query]


class _Doubts:
    """What a product can't tell from a positive, until there is much of it: (row, column, score) of some sides."""

    def __init__(self, sides: Sequence[tuple[_Side, int]]) -> None:
        self._sides = sides
        self._found: list[tuple[Rows, Rows, Single]] = []
        self._num = 0

    def add(self, tile: _Tile) -> None:
        """Take what a tile has marked; where that is much, it is decided here."""
        row, column, scores = tile.marked()
        if len(row) > CROWDED * tile.scores.size:
            self._settle(row, column, scores, tile.exact(row, column))
            return
        self._found.append((row, column, scores))
        self._num += len(row)
        if self._num > MOST_DOUBTS:
            self.settle()

    def settle(self) -> None:
        """Have all of it decided."""
        if self._found:
            row, column, scores = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
            self._settle(row, column, scores, None)
        self._found, self._num = [], 0

    def _settle(self, row: Rows, column: Rows, scores: Single, exact: Double | None) -> None:
        for side, axis in self._sides:
            query, item = (row, column) if axis == 1 else (column, row)
            side.settle(query, item, scores, exact)


class _Tile:
    """Scores of some rows with some columns: `scores` float32 [h, w], times `STEPS`; a thread has one of these.

    The product of many rows is made at once, which is faster; its tiles stay in a core's second cache.
    """

    def __init__(self, height: int, width: int) -> None:
        self._buffer, size = np.empty(height * width, np.float32), min(height, COMPARED) * width
        self._steps = np.empty(size, np.int16)
        self._above, self._near, self._marks = np.empty((3, size), bool)

    def begin(self, left: Vectors, rows: slice) -> None:
        """Take other rows."""
        self._left, self._start, self._scaled = left, rows.start, left.single[rows] * STEPS

    def cut(self, product: Product, right: Vectors, columns: slice) -> Iterator[slice]:
        """Be each tile of these columns, one after the other; gives its rows."""
        num = columns.stop - columns.start
        scores = self._buffer[: len(self._scaled) * num].reshape(-1, num)
        product(self._scaled, right.single[columns], scores)
        self._right, self._columns = right, columns
        for part in blocks(len(scores), COMPARED):
            self.scores = scores[part]
            self._whole = self._steps[: self.scores.size].reshape(self.scores.shape)
            np.copyto(self._whole, self.scores, casting="unsafe")
            self._marked = self._marks[: self.scores.size].reshape(self.scores.shape)
            self._marked.fill(False)
            self._rows = slice(self._start + part.start, self._start + part.stop)
            yield self._rows

    def above(self, upper: Steps, lower: Steps, axis: int) -> Rows:
        """For each of the first m queries, how many entries are above `upper`; those from `lower` to it are marked.

        Bounds are int16 [m]; queries are rows, and what is counted lies along `axis` 1, or the other way round.
        """
        first = (slice(len(upper)), slice(None)) if axis == 1 else (slice(None), slice(len(upper)))
        whole = self._whole[first]
        above, near = (flags[: whole.size].reshape(whole.shape) for flags in (self._above, self._near))
        np.greater(whole, upper[:, None] if axis == 1 else upper, out=above)
        np.greater_equal(whole, lower[:, None] if axis == 1 else lower, out=near)
        near ^= above
        self._marked[first] |= near
        return _sums(above, axis)

    def marked(self) -> tuple[Rows, Rows, Single]:
        """(row, column, score) of what any comparison has marked, [n] each."""
        row, column = np.unravel_index(np.flatnonzero(self._marked), self._marked.shape)
        return row + self._rows.start, column + self._columns.start, self.scores[row, column]

    def exact(self, row: Rows, column: Rows) -> Double:
        """The exact scores of these entries, float64 [n], by way of all."""
        scores = exact_tile(self._left, self._right, self._rows, self._columns)
        found: Double = scores[row - self._rows.start, column - self._columns.start]
        return found


def _count(product: Product, forward: _Side, backward: _Side | None) -> None:
    """Fill the sides' slots; the queries of `forward` are the rows of a tile, those of `backward` its columns."""
    left, right = forward.queries, forward.gallery
    sides = [(side, axis) for side, axis in ((forward, 1), (backward, 0)) if side is not None]
    tasks, width, of_thread = (
        shares(len(left), product.tile[0]),
        min(product.tile[1], len(right)),
        threading.local(),
    )

    def count(rows: slice) -> None:
        tile = of_thread.__dict__.setdefault("tile", None) or _Tile(tasks[0].stop, width)
        of_thread.tile = tile
        tile.begin(left, rows)
        doubts = _Doubts(sides)
        for columns in blocks(len(right), width):
            for part in tile.cut(product, right, columns):
                for side, axis in sides:
                    side.count(tile, part if axis == 1 else columns, axis)
                doubts.add(tile)
        doubts.settle()

    for _ in in_parallel(count, tasks):
        pass


def _sums(flags: Mask, axis: int) -> Rows:
    """How many are set along an axis, int64; `np.count_nonzero` takes ten times as long."""
    if axis == 0:
        # At most 255, which a byte can hold.
        bits = flags.view(np.uint8)
        parts = [np.add.reduce(bits[block], axis=0, dtype=np.uint8) for block in blocks(len(bits), BYTE)]
    elif flags.shape[1] % 8:
        parts = [np.count_nonzero(flags, axis=1)]
    else:
        # Eight flags are one number, whose eight bytes count up side by side.
        words = flags.view(np.uint64)
        sums = [np.add.reduce(words[:, block], axis=1) for block in blocks(words.shape[1], BYTE)]
        parts = [np.stack(sums, axis=1).view(np.uint8).sum(axis=1, dtype=np.int64)]
    total: Rows = parts[0].astype(np.int64) if len(parts) == 1 else np.sum(parts, axis=0, dtype=np.int64)
    return total


def _distinct(pairs: Rows, num_gallery: int) -> Rows:
    """Every pair once, int64 [p, 2], by query."""
    if not len(pairs):
        raise DataError("no query has a positive in the gallery, so there is nothing to rank")
    keys = pairs[:, 0] * num_gallery + pairs[:, 1]
    if (keys[1:] > keys[:-1]).all():
        return pairs
    return np.stack(np.divmod(np.unique(keys), num_gallery), axis=1)


def _scores(left: Vectors, right: Vectors, pairs: Rows) -> Double:
    """The scores of pairs to `CLOSE`, float64 [p], on every core."""
    tasks = [*blocks(len(pairs), SCORED_BY_A_THREAD)]
    return np.concatenate([*in_parallel(lambda some: close_scores(left, right, *pairs[some].T), tasks)])


def _by_count(counts: Rows) -> Rows:
    """Rows, those with the most positives first, int64 [n]."""
    return np.argsort(-counts, kind="stable")


def _moved(pairs: Rows, rows: Rows, columns: Rows) -> Rows:
    """The pairs as positions in `rows` and `columns`."""
    moved = []
    for end, order in enumerate((rows, columns)):
        place = np.empty(int(order.max()) + 1, np.int64)
        place[order] = np.arange(len(order))
        moved.append(place[pairs[:, end]])
    return np.stack(moved, axis=1)
