from __future__ import annotations

from eval.page.changes import changes
from eval.page.outcomes import outcomes


def test_nothing_changed_since_the_same_run(toy):
    measured = toy(noise=1.0)
    for change in changes(outcomes(measured), outcomes(measured)).values():
        assert (change.num_better, change.num_worse) == (0, 0)
        assert not len(change.moved(5, better=True))
        assert not len(change.moved(5, better=False))


def test_better_and_worse_swap_with_the_runs(toy):
    now, then = outcomes(toy(noise=0.5)), outcomes(toy(name="before", noise=2.0, seed=1))
    forward, backward = changes(then, now), changes(now, then)
    for name, change in forward.items():
        assert change.num_better == backward[name].num_worse > 0
        assert change.moved(5, better=True).tolist() == backward[name].moved(5, better=False).tolist()


def test_queries_are_matched_by_id_and_not_by_place(toy):
    ids = [f"i{scene:03}" for scene in (2, 0, 1)]
    now, then = outcomes(toy(noise=1.0)), outcomes(toy(name="before", noise=1.0, ids=ids))
    found = changes(then, now)["image-to-text"]
    earlier = next(one for one in then if one.way.name == "image-to-text")
    ranks = dict(zip(earlier.queries.ids.tolist(), earlier.ranks.ranks.tolist(), strict=True))
    for place, position in enumerate(found.positions):
        assert found.then[place] == ranks[f"i{position:03}"] == found.rank_then(position)


def test_a_query_that_was_not_there_has_no_earlier_rank(toy):
    now, then = outcomes(toy()), outcomes(toy(name="before", num_scenes=8))
    found = changes(then, now)["text-to-image"]
    assert (found.gallery_then, found.gallery_now) == (8, 12)
    assert len(found.positions) == 16
    assert found.rank_then(15) is not None
    assert found.rank_then(16) is None


def test_directions_of_one_run_alone_are_not_compared(toy):
    now, then = outcomes(toy()), outcomes(toy(name="before", modalities=("image", "text")))
    assert set(changes(then, now)) == {"text-to-image", "image-to-text"}
