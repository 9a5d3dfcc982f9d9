"""How far a figure would move with other queries: the bootstrap over clusters of queries.

Queries that share a positive, such as the five captions of an image, are right or wrong together; counted as if
they were independent, they would make an interval too narrow. So what is drawn with replacement are clusters
(Field and Welsh 2007). The gallery stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from contract.ranking.vectors import Double, Rows, blocks

NUM_DRAWS = 1000
# Clusters, or queries, that are drawn at once: 32 MB.
DRAWN_AT_ONCE = 1 << 22


def clusters(num_queries: int, pairs: Rows) -> Rows:
    """Which queries depend on each other, int64 [q]: those of one number.

    Queries that share a positive of `pairs` int64 [p, 2], directly or through others, do.
    """
    cluster = np.arange(num_queries)
    by_item = np.full(int(pairs[:, 1].max(initial=-1)) + 1, num_queries)
    while True:
        np.minimum.at(by_item, pairs[:, 1], cluster[pairs[:, 0]])
        joined = cluster.copy()
        # A cluster's first query is joined on behalf of all, and what it was joined to may have been joined, too:
        # a chain of queries halves with every round.
        np.minimum.at(joined, cluster[pairs[:, 0]], by_item[pairs[:, 1]])
        joined = joined[joined]
        if (joined == cluster).all():
            return cluster
        cluster = joined


def bootstrap(
    columns: Mapping[str, Double],
    clusters: Rows,
    *,
    medians: Mapping[str, Double] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> dict[str, Double]:
    """The mean of each column, and the median of each of `medians`, in every draw of clusters: float64 [draws].

    Columns are float64 [r], a value for each query; `clusters` int64 [r] as the function of that name gives them.
    The same clusters and seed are the same draws, so that differences of two columns are paired.
    """
    clusters = np.unique(clusters, return_inverse=True)[1]
    num_clusters = int(clusters.max()) + 1
    sizes = np.bincount(clusters).astype(np.float64)
    sums = {name: np.bincount(clusters, weights=values) for name, values in columns.items()}
    ordered = {name: (np.argsort(values), np.sort(values)) for name, values in (medians or {}).items()}
    found: dict[str, list[Double]] = {name: [] for name in [*sums, *ordered]}
    for weights in _draws(num_clusters, len(clusters), num_draws, seed):
        totals = weights @ sizes
        for name, values in sums.items():
            found[name].append(weights @ values / totals)
        for name, (order, ascending) in ordered.items():
            found[name].append(_medians(ascending, np.cumsum(weights[:, clusters[order]], axis=1)))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def interval(draws: Double) -> tuple[float, float]:
    """The middle 95% of the draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _draws(num_clusters: int, num_queries: int, num_draws: int, seed: int) -> Iterator[Double]:
    """How often each cluster is drawn, float64 [n, clusters], `num_draws` in all."""
    generator = np.random.default_rng(seed)
    for block in blocks(num_draws, max(1, DRAWN_AT_ONCE // num_queries)):
        size = block.stop - block.start
        drawn = generator.integers(0, num_clusters, (size, num_clusters)) + num_clusters * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_clusters)
        yield counts.reshape(size, num_clusters).astype(np.float64)


def _medians(ascending: Double, up_to: Double) -> Double:
    """The median of values that stand there so many times: `up_to` float64 [n, r] are their cumulative counts."""
    half = up_to[:, -1:] / 2
    lower, upper = (up_to >= half).argmax(axis=1), (up_to > half).argmax(axis=1)
    medians: Double = (ascending[lower] + ascending[upper]) / 2
    return medians
