from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.ranking import EveryRank, Ranks, per_query, random_baseline, summarise

RANKS = Ranks(
    query_rows=np.arange(4),
    ranks=np.array([1, 4, 10, 25]),
    tied=np.array([0, 2, 0, 1]),
    num_gallery=30,
    num_without_positive=1,
    positives=EveryRank(queries=np.array([0, 0, 0, 1, 2, 3, 3]), ranks=np.array([1, 3, 9, 4, 10, 25, 30])),
)


def slow_average_precision(ranks: list[int]) -> float:
    """The definition: precision at every rank up to R that holds a positive, over R."""
    return sum(sum(r <= k for r in ranks) / k for k in range(1, len(ranks) + 1) if k in ranks) / len(ranks)


def test_summary_has_the_published_figures() -> None:
    assert summarise(RANKS) == {
        "R@1": 25.0,
        "R@5": 50.0,
        "R@10": 75.0,
        "mean_rank": 10.0,
        "median_rank": 7.0,
        # The first query alone has positives among its first R: at 1 and 3 of its three.
        "mAP@R": pytest.approx(100 * (1 + 2 / 3) / 3 / 4),
        "num_queries": 4,
        "num_gallery": 30,
        "ties": 2,
        "queries_without_positive": 1,
    }


def test_recall_is_given_at_any_k() -> None:
    assert [summarise(RANKS, (4, 25))[name] for name in ("R@4", "R@25")] == [50.0, 100.0]


def test_without_the_ranks_of_all_positives_there_is_no_average_precision() -> None:
    best = Ranks(
        query_rows=RANKS.query_rows, ranks=RANKS.ranks, tied=RANKS.tied, num_gallery=30, num_without_positive=0
    )
    assert "mAP@R" not in summarise(best)


@given(st.lists(st.sets(st.integers(1, 12), min_size=1), min_size=1, max_size=5))
def test_average_precision_is_that_of_the_definition(found: list[set[int]]) -> None:
    every = EveryRank(
        queries=np.repeat(np.arange(len(found)), [len(ranks) for ranks in found]),
        ranks=np.concatenate([sorted(ranks) for ranks in found]),
    )
    first = np.array([min(ranks) for ranks in found])
    ranks = Ranks(
        query_rows=np.arange(len(found)),
        ranks=first,
        tied=np.zeros_like(first),
        num_gallery=12,
        num_without_positive=0,
        positives=every,
    )
    expected = [100 * slow_average_precision(sorted(ranks)) for ranks in found]
    assert per_query(ranks)["mAP@R"] == pytest.approx(expected)


@given(st.integers(1, 7), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_random_baseline_is_the_mean_over_every_order(num_gallery: int, sizes: list[int]) -> None:
    sizes = [min(size, num_gallery) for size in sizes]
    choices = [list(itertools.combinations(range(1, num_gallery + 1), size)) for size in sizes]
    # As many copies of each choice as make every query weigh the same.
    total = math.lcm(*map(len, choices))
    ranks = np.concatenate([np.repeat([c[0] for c in choice], total // len(choice)) for choice in choices])
    precisions = [np.mean([slow_average_precision(list(c)) for c in choice]) for choice in choices]
    baseline = random_baseline(num_gallery, np.array(sizes), ks=(1, 3, 10))
    assert baseline["R@1"] == pytest.approx(100 * (ranks <= 1).mean())
    assert baseline["R@3"] == pytest.approx(100 * (ranks <= 3).mean())
    assert baseline["R@10"] == pytest.approx(100 * (ranks <= 10).mean())
    assert baseline["mean_rank"] == pytest.approx(ranks.mean())
    assert baseline["median_rank"] == np.median(ranks)
    assert baseline["mAP@R"] == pytest.approx(100 * np.mean(precisions))
    assert (baseline["num_queries"], baseline["num_gallery"]) == (len(sizes), num_gallery)


def test_random_baseline_of_the_official_protocol() -> None:
    baseline = random_baseline(1000, np.ones(5000, np.int64))
    assert (baseline["R@1"], baseline["R@10"]) == pytest.approx((0.1, 1.0))
    assert (baseline["mean_rank"], baseline["median_rank"]) == (500.5, 500.5)
