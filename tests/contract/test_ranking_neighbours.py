from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from contract.ranking import neighbour_hits

RNG = np.random.default_rng(0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def slowly(queries, query_labels, bank, bank_labels, bank_ids, k):
    """(any, vote) of each query, one by one, in float64."""
    found = []
    for query, wanted in zip(unit(queries), query_labels, strict=True):
        scores = [float(query @ item) for item in unit(bank)]
        nearest = sorted(range(len(bank)), key=lambda row: (-scores[row], bank_ids[row]))[:k]
        labels = [bank_labels[row] for row in nearest]
        most = max(Counter(labels).values())
        voted = next(label for label in labels if Counter(labels)[label] == most)
        found.append((wanted in labels, voted == wanted))
    return np.array(found).T


@pytest.mark.parametrize("num_classes", [2, 5, 30])
def test_hits_and_votes_are_those_of_a_slow_loop(num_classes):
    queries, bank = RNG.standard_normal((50, 8)), RNG.standard_normal((80, 8))
    query_labels, bank_labels = RNG.integers(num_classes, size=50), RNG.integers(num_classes, size=80)
    ids = RNG.permutation([f"b{n:03}" for n in range(80)])
    for found in neighbour_hits(queries, query_labels, bank, bank_labels, ids, (1, 2, 3, 10, 80)):
        any_, vote = slowly(queries, query_labels, bank, bank_labels, ids, found.k)
        np.testing.assert_array_equal(found.any, any_)
        np.testing.assert_array_equal(found.vote, vote)


def test_votes_without_ties_are_those_of_scikit_learn():
    queries, bank = unit(RNG.standard_normal((100, 6))), unit(RNG.standard_normal((200, 6)))
    labels, bank_labels = RNG.integers(2, size=100), RNG.integers(2, size=200)
    for k in (1, 3, 7):  # odd, and two classes: no two labels have most
        classifier = KNeighborsClassifier(k, algorithm="brute").fit(bank, bank_labels)
        (found,) = neighbour_hits(queries, labels, bank, bank_labels, np.arange(200).astype(str), (k,))
        np.testing.assert_array_equal(found.vote, classifier.predict(queries) == labels)


def test_equal_neighbours_stand_in_the_order_of_their_ids():
    same = np.ones((3, 4))
    labels = np.array([0, 1, 2])
    (found,) = neighbour_hits(np.ones((1, 4)), np.array([1]), same, labels, ["b", "a", "c"], (1,))
    assert found.any.all()
    (found,) = neighbour_hits(np.ones((1, 4)), np.array([1]), same, labels, ["a", "b", "c"], (1,))
    assert not found.any.any()


def test_of_several_labels_with_most_votes_the_nearest_wins():
    bank = np.array([[1, 0.0], [1, 0.1], [1, 0.2], [1, 0.3]])
    query, ids = np.array([[1, 0.0]]), ["a", "b", "c", "d"]
    for labels, wins in (([0, 1, 1, 0], 0), ([1, 0, 0, 1], 1), ([2, 1, 1, 0], 1)):
        (found,) = neighbour_hits(query, np.array([wins]), bank, np.array(labels), ids, (4,))
        assert found.vote.all()
