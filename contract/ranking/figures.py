"""Published figures of ranks, what they are for each query, and what a random order would give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contract.ranking.ranks import EveryRank, Ranks
from contract.ranking.vectors import Double, Rows

KS = (1, 5, 10)


def summarise(ranks: Ranks, ks: Sequence[int] = KS) -> dict[str, float | int]:
    """Recall at each of `ks` and mAP@R in percent, mean and median rank, and the counts behind them.

    Without mAP@R where only the best positives were ranked.
    """
    means = {name: float(values.mean()) for name, values in per_query(ranks, ks).items()}
    return {
        **{f"R@{k}": means[f"R@{k}"] for k in ks},
        "mean_rank": means["mean_rank"],
        "median_rank": float(np.median(ranks.ranks)),
        **({} if ranks.positives is None else {"mAP@R": means["mAP@R"]}),
        "num_queries": len(ranks.ranks),
        "num_gallery": ranks.num_gallery,
        "ties": int((ranks.tied > 0).sum()),
        "queries_without_positive": ranks.num_without_positive,
    }


def per_query(ranks: Ranks, ks: Sequence[int] = KS) -> dict[str, Double]:
    """The columns whose means `summarise` gives, float64 [r] each."""
    columns = {
        **{f"R@{k}": 100.0 * (ranks.ranks <= k).astype(np.float64) for k in ks},
        "mean_rank": ranks.ranks.astype(np.float64),
    }
    return columns if ranks.positives is None else columns | {"mAP@R": 100.0 * average_precision(ranks.positives)}


def average_precision(positives: EveryRank) -> Double:
    """Each query's AP@R, float64 [r]: with R positives at ranks r_1 < r_2 < ..., 1/R sum_{i: r_i <= R} i / r_i.

    Musgrave, Belongie and Lim 2020 (arXiv 2003.08505).
    """
    num_positives = np.bincount(positives.queries)[positives.queries]
    number = 1 + np.arange(len(num_positives)) - np.searchsorted(positives.queries, positives.queries)
    found = np.where(positives.ranks <= num_positives, number / positives.ranks, 0.0)
    return np.bincount(positives.queries, weights=found / num_positives).astype(np.float64)


def random_baseline(num_gallery: int, num_positives: Rows, ks: Sequence[int] = KS) -> dict[str, float | int]:
    """What a random order of the gallery gives in expectation; `num_positives` int64 [q], of each query.

    With p positives among g items: R@K = 1 - C(g-p, K) / C(g, K), mean rank (g+1) / (p+1), mAP@R
    1/g sum_{k=1..p} (1 + (k-1)(p-1)/(g-1)) / k; the median is that of all queries' ranks taken together.
    """
    sizes, counts = np.unique(num_positives, return_counts=True)
    within = sum(
        count * _rank_distribution(num_gallery, int(size)) for size, count in zip(sizes, counts, strict=True)
    ) / len(num_positives)
    # Where one half is met exactly, the median lies between that rank and the next one.
    lower, upper = (int(np.argmax(within > 0.5 + side)) for side in (-1e-9, 1e-9))
    precisions = [_random_precision(num_gallery, int(size)) for size in sizes]
    return {
        **{f"R@{k}": 100.0 * float(within[min(k, num_gallery)]) for k in ks},
        "mean_rank": float(((num_gallery + 1) / (num_positives + 1)).mean()),
        "median_rank": (lower + upper) / 2,
        "mAP@R": 100.0 * float(np.average(precisions, weights=counts)),
        "num_queries": len(num_positives),
        "num_gallery": num_gallery,
    }


def _rank_distribution(num_gallery: int, num_positives: int) -> Double:
    """P(rank <= k) of the best of `num_positives` in a random order, float64 [g + 1], k from 0."""
    drawn = np.arange(num_gallery)
    misses = np.clip(num_gallery - num_positives - drawn, 0, None) / (num_gallery - drawn)
    distribution: Double = 1.0 - np.concatenate([[1.0], np.cumprod(misses)])
    return distribution


def _random_precision(num_gallery: int, num_positives: int) -> float:
    before = np.arange(num_positives)
    hits = 1 + before * (num_positives - 1) / max(1, num_gallery - 1)
    return float((hits / (before + 1)).sum() / num_gallery)
