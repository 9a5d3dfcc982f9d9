from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.ranking import Grades, ndcg, random_ndcg

NO_PAIRS = np.empty((0, 2), np.int64)


@st.composite
def graded(draw: st.DrawFn) -> Grades:
    """Grades of 3 queries and up to 5 items, some of pairs, some of labels."""
    num_gallery = draw(st.integers(1, 5))
    pair = st.tuples(st.integers(0, 2), st.integers(0, num_gallery - 1))
    pairs = draw(st.dictionaries(pair, st.sampled_from([0.0, 0.5, 1.0, 3.0]), max_size=6))
    labels = [draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)) for n in (3, num_gallery)]
    return Grades(
        pairs=np.array([*pairs], np.int64).reshape(-1, 2),
        grades=np.array([*pairs.values()]),
        query_labels=np.array(labels[0]),
        gallery_labels=np.array(labels[1]),
    )


def slow_grades(grades: Grades, query: int) -> list[float]:
    """The grade of every gallery item for a query."""
    stated = {(int(q), int(g)): grade for (q, g), grade in zip(grades.pairs, grades.grades, strict=True)}
    label = grades.query_labels[query]
    return [
        stated.get((query, g), float(label >= 0 and label == other))
        for g, other in enumerate(grades.gallery_labels)
    ]


def slow_dcg(grades: list[float], k: int) -> float:
    return sum((2**grade - 1) / math.log2(place + 1) for place, grade in enumerate(grades[:k], start=1))


@settings(deadline=None)
@given(graded(), st.integers(1, 6), st.integers(0, 9))
def test_ndcg_is_that_of_the_definition(grades: Grades, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery = rng.standard_normal((3, 4)), rng.standard_normal((len(grades.gallery_labels), 4))
    found = ndcg(queries, gallery, grades, [str(g) for g in range(len(gallery))], k)
    cosines = queries @ (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).T
    for query, value in enumerate(found):
        all_grades = slow_grades(grades, query)
        best = slow_dcg(sorted(all_grades, reverse=True), k)
        expected = slow_dcg([all_grades[g] for g in np.argsort(-cosines[query])], k) / best if best else math.nan
        assert value == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(graded(), st.integers(1, 6))
def test_the_random_figure_is_the_mean_over_every_order(grades: Grades, k: int) -> None:
    for query, value in enumerate(random_ndcg(grades, k)):
        all_grades = slow_grades(grades, query)
        best = slow_dcg(sorted(all_grades, reverse=True), k)
        orders = [slow_dcg(list(order), k) for order in itertools.permutations(all_grades)]
        expected = np.mean(orders) / best if best else math.nan
        assert value == pytest.approx(expected, nan_ok=True)


def test_items_that_tie_stand_in_the_order_of_their_ids() -> None:
    labels = np.array([0])
    grades = Grades(
        pairs=np.array([[0, 1]]), grades=np.array([2.0]), query_labels=labels, gallery_labels=np.array([5, 5])
    )
    tied = np.ones((2, 3))
    assert ndcg(tied[:1], tied, grades, ["b", "a"], 1).tolist() == [1.0]
    assert ndcg(tied[:1], tied, grades, ["a", "b"], 1).tolist() == [0.0]


def test_a_query_that_nothing_is_relevant_to_has_no_figure() -> None:
    labels = np.array([-1])
    grades = Grades(pairs=NO_PAIRS, grades=np.empty(0), query_labels=labels, gallery_labels=labels)
    assert np.isnan(ndcg(np.ones((1, 2)), np.ones((1, 2)), grades, ["a"], 10)).all()
