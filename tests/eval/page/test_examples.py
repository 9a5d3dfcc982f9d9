from __future__ import annotations

import numpy as np

from eval.page.changes import changes
from eval.page.examples import examples
from eval.page.outcomes import outcomes


def text_to_image(measured):
    return next(one for one in outcomes(measured) if one.way.name == "text-to-image")


def shown(measured, change=None):
    ways = {(one.way.queries, one.way.gallery): one for one in outcomes(measured)}
    found = examples(ways["text", "image"], measured.split, ways, change)
    return {kind: [one for one in found if one.kind == kind] for kind in {one.kind for one in found}}


def test_each_kind_has_the_ranks_that_its_name_says(toy):
    found = shown(toy(num_scenes=40, noise=1.2))
    assert {one.rank for one in found["best"]} == {1}
    assert all(2 <= one.rank <= 5 for one in found["near"])
    assert all(one.rank > 5 for one in found["worst"])
    assert all(len(group) == 6 for group in found.values())


def test_the_worst_are_the_worst_of_all(toy):
    measured = toy(num_scenes=40, noise=2.0)
    ranks = text_to_image(measured).ranks.ranks
    assert [one.rank for one in shown(measured)["worst"]] == sorted(ranks, reverse=True)[:6]


def test_a_perfect_student_has_no_misses(toy):
    assert set(shown(toy(noise=0.0))) == {"best"}


def test_hits_stand_in_the_order_of_their_scores_with_matches_marked(toy):
    measured = toy(noise=1.2)
    for example in (one for group in shown(measured).values() for one in group):
        scores = [hit.score for hit in example.hits]
        assert scores == sorted(scores, reverse=True)
        assert [hit.rank for hit in example.hits] == [1, 2, 3, 4, 5]
        owner = example.position // 2
        assert [hit.is_match for hit in example.hits] == [hit.position == owner for hit in example.hits]


def test_an_answer_beyond_the_hits_is_shown_with_its_rank(toy):
    for example in shown(toy(num_scenes=40, noise=2.0))["worst"]:
        assert example.answer is not None
        assert example.answer.is_match
        assert example.answer.rank == example.rank
        assert example.answer.position == example.position // 2


def test_constant_embeddings_are_examples_too(toy):
    measured = toy(vectors={"image": np.ones((12, 8)), "text": np.ones((24, 8)), "audio": np.zeros((12, 8))})
    found = shown(measured)
    assert [one.position for one in found["best"]] == [0, 1]
    assert [hit.position for hit in found["worst"][0].hits] == [0, 1, 2, 3, 4]


def test_queries_that_moved_most_are_gained_and_lost(toy):
    now, then = toy(num_scenes=40, noise=1.0), toy(name="before", num_scenes=40, noise=1.0, seed=1)
    change = changes(outcomes(then), outcomes(now))["text-to-image"]
    found = shown(now, change)
    assert all(one.rank < one.rank_then for one in found["gained"])
    assert all(one.rank > one.rank_then for one in found["lost"])
    factors = [one.rank_then / one.rank for one in found["gained"]]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == (change.then / change.now).max()
