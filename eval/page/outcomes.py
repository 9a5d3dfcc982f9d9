"""What became of every query: its rank, the recall curve and the histogram that the ranks make."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.ranking import Ranks, pair_scores, random_baseline, rank
from eval.embedded import Items
from eval.retrieval import Direction, Measured

Rows = npt.NDArray[np.int64]
Embeddings = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

# How far a recall curve goes; a smaller gallery ends it.
LARGEST_K = 100
# Pairs whose embeddings are gathered at once: 8 MB a side at width 512.
AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """A direction and its queries' ranks; `positives` int64 [p, 2] are positions in `queries` and `gallery`.

    `ranks` are those in one gallery of all items, which a gallery of examples needs; over a protocol's folds, the
    published ones, in `way.ranked`, are others.
    """

    way: Direction
    queries: Items
    gallery: Items
    positives: Rows
    ranks: Ranks

    @property
    def num_gallery(self) -> int:
        """Items that a query is published to be compared with: those of its fold."""
        return int(self.way.figures["num_gallery"])

    def random_recalls(self, ks: Rows) -> Double:
        """What a random order of the gallery gives at each of `ks`, percent, float64 [k]."""
        counts = np.bincount(self.positives[:, 0], minlength=len(self.queries.rows))[self.ranks.query_rows]
        figures = random_baseline(self.num_gallery, counts, ks.tolist())
        return np.array([figures[f"R@{k}"] for k in ks], dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Recall at every K from 1 on, in percent: `recalls` and `random` float64 [k]."""

    recalls: Double
    random: Double


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Ranks in bins that double.

    Of each bin its `first` and `last` rank and the `counts` of queries, int64 [b]; `shares` of them and of a random
    order, percent, float64 [b].
    """

    first: Rows
    last: Rows
    counts: Rows
    shares: Double
    random: Double


def outcomes(measured: Measured) -> tuple[Outcomes, ...]:
    """The outcomes of every direction, in the order of the report."""
    return tuple(_outcomes(measured, way) for way in measured.directions)


def curve(outcome: Outcomes) -> Curve:
    """The recall curve of a direction and that of a random order."""
    ks = np.arange(1, min(LARGEST_K, outcome.num_gallery) + 1)
    within = np.searchsorted(np.sort(outcome.way.ranked.ranks), ks, side="right")
    return Curve(recalls=100.0 * within / len(outcome.way.ranked.ranks), random=outcome.random_recalls(ks))


def histogram(outcome: Outcomes) -> Histogram:
    """The ranks of a direction in the bins 1, 2, 3 to 4, 5 to 8 and so on."""
    num_gallery = outcome.num_gallery
    last = 2 ** np.arange(max(1, num_gallery - 1).bit_length() + 1)
    last = np.unique(np.minimum(last, num_gallery))
    first = np.concatenate([[1], last[:-1] + 1])
    counts = np.bincount(np.searchsorted(last, outcome.way.ranked.ranks), minlength=len(last))
    return Histogram(
        first=first,
        last=last,
        counts=counts,
        shares=100.0 * counts / counts.sum(),
        random=np.diff(outcome.random_recalls(last), prepend=0.0),
    )


def rank_among(queries: Embeddings, gallery: Items, targets: Rows) -> Rows:
    """The exact rank of one gallery item, int64 [n], for each of `queries`, float32 [n, d]."""
    if not len(targets):
        return np.empty(0, np.int64)
    pairs = np.stack([np.arange(len(targets)), targets], axis=1)
    return rank(queries, gallery.embeddings, pairs, gallery.ids, every=False).ranks


def best_positives(outcome: Outcomes, positions: Rows) -> Rows:
    """The positive of each of these queries that scores best, int64 [n]; all of them have one."""
    wanted = outcome.positives[np.isin(outcome.positives[:, 0], positions)]
    order = np.lexsort((outcome.gallery.ids[wanted[:, 1]], -scores(outcome, *wanted.T), wanted[:, 0]))
    queries, first = np.unique(wanted[order, 0], return_index=True)
    best: Rows = wanted[order[first], 1][np.searchsorted(queries, positions)]
    return best


def scores(outcome: Outcomes, queries: Rows, items: Rows) -> Double:
    """The exact cosine of each pair of a query and a gallery item, float64 [n]; a zero vector's is 0."""
    found = np.empty(len(queries), np.float64)
    for start in range(0, len(queries), AT_ONCE):
        block = slice(start, start + AT_ONCE)
        left, right = outcome.queries.embeddings[queries[block]], outcome.gallery.embeddings[items[block]]
        same = np.arange(len(left)).repeat(2).reshape(-1, 2)
        found[block] = pair_scores(left, right, same)
    return found


def evenly(rows: Rows, most: int) -> Rows:
    """At most `most` of `rows`, evenly spaced, the same ones each time."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _outcomes(measured: Measured, way: Direction) -> Outcomes:
    split, ranks = measured.split, way.ranks
    queries, gallery = split.items[way.queries], split.items[way.gallery]
    positives = split.positives(way.queries, way.gallery)
    if ranks is None:
        ranks = rank(queries.embeddings, gallery.embeddings, positives, gallery.ids, every=False)
    return Outcomes(way=way, queries=queries, gallery=gallery, positives=positives, ranks=ranks)
