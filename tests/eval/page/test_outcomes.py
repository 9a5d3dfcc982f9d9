from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eval.page.outcomes import best_positives, curve, evenly, histogram, outcomes, rank_among


def test_ranks_are_those_of_the_report(toy):
    measured = toy()
    for outcome in outcomes(measured):
        figures = outcome.way.figures
        assert outcome.ranks.ranks.mean() == pytest.approx(figures["mean_rank"])
        assert curve(outcome).recalls[[0, 4, 9]].tolist() == pytest.approx(
            [figures["R@1"], figures["R@5"], figures["R@10"]]
        )


def test_over_folds_queries_are_ranked_in_one_gallery_for_the_examples(toy):
    measured = toy(noise=1.5)
    folded = replace(measured, directions=tuple(replace(way, ranks=None) for way in measured.directions))
    for one, other in zip(outcomes(measured), outcomes(folded), strict=True):
        np.testing.assert_array_equal(one.ranks.ranks, other.ranks.ranks)
        np.testing.assert_array_equal(one.ranks.query_rows, other.ranks.query_rows)


def test_curves_are_of_the_published_ranks_and_their_gallery(toy):
    measured = toy()
    way = measured.directions[0]
    ranked = replace(way.ranked, ranks=np.full_like(way.ranked.ranks, 3))
    folded = replace(way, ranks=None, ranked=ranked, figures=way.figures | {"num_gallery": 6})
    outcome = outcomes(replace(measured, directions=(folded,)))[0]
    assert curve(outcome).recalls.tolist() == [0, 0, 100, 100, 100, 100]
    assert curve(outcome).random[0] == pytest.approx(100 / 6)
    assert histogram(outcome).counts.tolist() == [0, 0, 24, 0]


def test_curve_ends_with_the_gallery_where_all_is_found(toy):
    first, second = outcomes(toy(modalities=("image", "text")))
    assert len(curve(first).recalls) == 12
    assert len(curve(second).recalls) == 24
    assert curve(first).recalls[-1] == pytest.approx(100)
    assert curve(first).random[-1] == pytest.approx(100)


def test_histogram_has_every_query_once_in_bins_that_double(toy):
    outcome = outcomes(toy(noise=3.0))[0]
    found = histogram(outcome)
    assert found.first.tolist() == [1, 2, 3, 5, 9]
    assert found.last.tolist() == [1, 2, 4, 8, 12]
    assert found.counts.sum() == 24
    assert found.shares.sum() == pytest.approx(100)
    assert found.random == pytest.approx([100 / 12, 100 / 12, 200 / 12, 400 / 12, 400 / 12])
    for first, last, count in zip(found.first, found.last, found.counts, strict=True):
        assert count == ((outcome.ranks.ranks >= first) & (outcome.ranks.ranks <= last)).sum()


def test_a_gallery_of_one_item_has_one_bin(toy):
    found = histogram(outcomes(toy(num_scenes=1))[0])
    assert (found.first.tolist(), found.last.tolist(), found.shares.tolist()) == ([1], [1], [100.0])


def test_the_best_positive_stands_at_the_rank_of_its_query(toy):
    outcome = next(one for one in outcomes(toy(noise=2.0)) if one.way.name == "image-to-text")
    positions = outcome.ranks.query_rows[::3]
    best = best_positives(outcome, positions)
    ranks = rank_among(outcome.queries.embeddings[positions], outcome.gallery, best)
    np.testing.assert_array_equal(ranks, outcome.ranks.ranks[::3])


def test_an_even_sample_keeps_the_ends_and_is_the_same_each_time():
    rows = np.arange(100, 200)
    assert evenly(rows, 4).tolist() == [100, 133, 166, 199]
    assert evenly(rows[:3], 4).tolist() == [100, 101, 102]
