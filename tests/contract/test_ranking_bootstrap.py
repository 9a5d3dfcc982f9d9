from __future__ import annotations

import numpy as np
import pytest

from contract.ranking import bootstrap, clusters, interval

ALONE = np.arange(200)


def test_captions_of_one_image_are_one_cluster() -> None:
    found = clusters(6, np.array([[0, 3], [1, 3], [2, 4], [4, 0], [5, 0]]))
    assert len({int(found[row]) for row in (0, 1)}) == 1
    assert len({int(found[row]) for row in (4, 5)}) == 1
    # A query without a positive stands alone.
    assert len(np.unique(found)) == 4


def test_queries_are_joined_through_others() -> None:
    chain = [(query, query + step) for query in range(50) for step in (0, 1)]
    assert (clusters(50, np.array(chain)) == 0).all()


def test_a_long_chain_in_any_order_is_one_cluster() -> None:
    order = np.random.default_rng(0).permutation(30_000)
    pairs = np.stack(
        [np.concatenate([order, order[1:]]), np.concatenate([np.arange(30_000), np.arange(29_999)])], 1
    )
    assert (clusters(30_000, pairs) == 0).all()


def test_images_that_share_no_caption_are_independent() -> None:
    pairs = np.stack([np.arange(20) // 5, np.arange(20)], axis=1)
    assert len(np.unique(clusters(4, pairs))) == 4


def test_the_interval_of_a_mean_is_that_of_the_textbook() -> None:
    values = np.random.default_rng(1).normal(10, 2, 200)
    low, high = interval(bootstrap({"x": values}, ALONE, num_draws=4000)["x"])
    half = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_captions_that_stand_or_fall_together_make_the_interval_wider() -> None:
    rng = np.random.default_rng(2)
    values = np.repeat(rng.normal(0, 1, 200), 5)
    as_one, apart = (
        interval(bootstrap({"x": values}, cluster, num_draws=2000)["x"])
        for cluster in (np.repeat(ALONE, 5), np.arange(1000))
    )
    assert (as_one[1] - as_one[0]) / (apart[1] - apart[0]) == pytest.approx(np.sqrt(5), rel=0.1)


def test_clusters_of_other_sizes_weigh_by_their_queries() -> None:
    cluster = np.array([0, 0, 0, 1])
    draws = bootstrap({"x": np.array([1.0, 1.0, 1.0, 5.0])}, cluster, num_draws=500)["x"]
    assert set(np.round(draws, 6)) == {1.0, 2.0, 5.0}


@pytest.mark.parametrize("num_queries", [7, 8])
def test_the_median_is_that_of_the_queries_that_were_drawn(num_queries: int) -> None:
    rng = np.random.default_rng(4)
    ranks, cluster = rng.integers(1, 5, num_queries).astype(float), rng.integers(0, 4, num_queries)
    draws = bootstrap({}, cluster, medians={"x": ranks}, num_draws=200, seed=3)["x"]
    drawn = np.random.default_rng(3).integers(0, len(np.unique(cluster)), (200, len(np.unique(cluster))))
    kept = np.unique(cluster, return_inverse=True)[1]
    expected = [np.median(np.concatenate([ranks[kept == one] for one in draw])) for draw in drawn]
    assert draws.tolist() == expected


def test_the_same_seed_draws_the_same_queries() -> None:
    values = np.random.default_rng(5).normal(size=200)
    first, again, other = (bootstrap({"x": values}, ALONE, seed=seed)["x"] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_differences_are_paired() -> None:
    values = np.random.default_rng(6).normal(size=200)
    draws = bootstrap({"a": values, "b": values + 1, "b - a": np.ones(200)}, ALONE)
    assert draws["b"] - draws["a"] == pytest.approx(draws["b - a"])
