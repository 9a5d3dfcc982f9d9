from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from contract import scores
from contract.errors import RunError
from contract.ranking import Ranks, nearest, rank, summarise
from contract.scores import Direction, Scores
from eval import embedded
from eval.embedded import Embedded, Items
from eval.report_rerank import as_tree, table
from eval.rerank import measure, rerank
from eval.runs import Student, open_student

RNG = np.random.default_rng(0)


def quiet(line: str) -> None:
    pass


def items(vectors: np.ndarray, name: str, first_row: int = 0) -> Items:
    ids = RNG.permutation([f"{name}{n:03}" for n in range(len(vectors))])
    rows = first_row + 2 * np.arange(len(vectors))
    return Items(rows=rows, ids=ids, embeddings=vectors.astype(np.float32), num_quarantined=0)


def drawn(num_queries: int, num_gallery: int, width: int = 6) -> tuple[Items, Items, np.ndarray]:
    """Queries, a gallery, and positives: none, one or several a query."""
    queries = items(RNG.standard_normal((num_queries, width)), "q", first_row=3)
    gallery = items(RNG.standard_normal((num_gallery, width)), "g", first_row=5)
    counts = RNG.integers(0, 4, num_queries)
    pairs = [(q, g) for q, count in enumerate(counts) for g in RNG.permutation(num_gallery)[:count]]
    return queries, gallery, np.array(pairs, dtype=np.int64)


def scored(queries: Items, gallery: Items, candidates: np.ndarray, values: np.ndarray) -> Scores:
    """Scores of every query, whose rows stand in another order."""
    order = RNG.permutation(len(queries.rows))
    return Scores(
        query_rows=queries.rows[order],
        candidate_rows=gallery.rows[candidates][order],
        scores=values[order].astype(np.float32),
    )


def slowly(queries: Items, gallery: Items, positives, candidates, values) -> dict[int, tuple[int, int]]:
    """{query: (rank, ties)}, from the whole order of the gallery written out."""
    found = {}
    for q, query in enumerate(queries.embeddings.astype(np.float64)):
        own = {g for position, g in positives if position == q}
        if not own:
            continue
        vectors = gallery.embeddings.astype(np.float64)
        cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        score = dict(zip(candidates[q], values[q].astype(np.float32), strict=True))
        first = sorted(score, key=lambda g: (-score[g], gallery.ids[g]))
        rest = [g for g in range(len(vectors)) if g not in score]
        order = first + sorted(rest, key=lambda g: (-cosines[g], gallery.ids[g]))
        place = next(place for place, g in enumerate(order) if g in own)
        best = order[place]
        ties = sum(score[g] == score[best] for g in score) - 1 if best in score else 0
        found[q] = (place + 1, ties)
    return found


@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("proposed", ["nearest", "anything"])
@pytest.mark.parametrize("coarse", [False, True])
def test_ranks_are_those_of_the_whole_order_written_out(k, proposed, coarse):
    queries, gallery, positives = drawn(40, 30)
    ranks = rank(queries.embeddings, gallery.embeddings, positives, gallery.ids)
    if proposed == "nearest":
        candidates = nearest(queries.embeddings, gallery.embeddings, gallery.ids, k)
    else:  # an index may propose others than the nearest
        candidates = np.stack([RNG.permutation(30)[:k] for _ in range(40)])
    values = RNG.standard_normal((40, k)).round(0 if coarse else 9)
    found = rerank(queries, gallery, positives, ranks, scored(queries, gallery, candidates, values), "x.npz")
    expected = slowly(queries, gallery, positives, candidates, values)
    assert dict(zip(found.ranks.query_rows.tolist(), found.ranks.ranks.tolist(), strict=True)) == {
        query: place for query, (place, _) in expected.items()
    }
    assert found.ranks.tied.tolist() == [ties for _, ties in expected.values()]
    assert found.ranks.num_without_positive == 40 - len(expected)
    assert found.k == k


def test_scores_that_are_the_cosines_change_no_rank():
    queries, gallery, positives = drawn(50, 40)
    ranks = rank(queries.embeddings, gallery.embeddings, positives, gallery.ids)
    candidates = nearest(queries.embeddings, gallery.embeddings, gallery.ids, 10)
    falling = np.broadcast_to(-np.arange(10.0), (50, 10))
    found = rerank(queries, gallery, positives, ranks, scored(queries, gallery, candidates, falling), "x.npz")
    np.testing.assert_array_equal(found.ranks.ranks, ranks.ranks)


def test_perfect_scores_reach_what_can_be_reached_and_no_more():
    queries, gallery, positives = drawn(60, 40)
    ranks = rank(queries.embeddings, gallery.embeddings, positives, gallery.ids)
    candidates = nearest(queries.embeddings, gallery.embeddings, gallery.ids, 5)
    own = {(q, g) for q, g in positives.tolist()}
    values = np.array([[float((q, g) in own) for g in row] for q, row in enumerate(candidates)])
    found = rerank(queries, gallery, positives, ranks, scored(queries, gallery, candidates, values), "x.npz")
    reached = ranks.ranks <= 5
    # Of positives that are told apart by nothing, and of nothing else.
    assert (found.ranks.ranks[reached] == 1).all()
    np.testing.assert_array_equal(found.ranks.ranks[~reached], ranks.ranks[~reached])
    assert found.reachable == 100.0 * reached.mean()


def test_equal_embeddings_behind_the_candidates_keep_their_order():
    queries, gallery = items(np.ones((1, 4)), "q"), items(np.ones((20, 4)), "g")
    by_id = np.argsort(gallery.ids)
    positives = np.array([[0, by_id[9]]])
    ranks = rank(queries.embeddings, gallery.embeddings, positives, gallery.ids)
    assert ranks.ranks.tolist() == [10]
    for candidates, expected in ((by_id[:5], 10), (by_id[12:17], 15), (by_id[7:9], 10), (by_id[8:11:2], 11)):
        values = np.zeros((1, len(candidates)))
        found = rerank(
            queries, gallery, positives, ranks, scored(queries, gallery, candidates[None], values), "x.npz"
        )
        assert found.ranks.ranks.tolist() == [expected]


def test_query_without_scores_is_an_error():
    queries, gallery, positives = drawn(40, 30)
    ranks = rank(queries.embeddings, gallery.embeddings, positives, gallery.ids)
    whole = scored(queries, gallery, np.tile(np.arange(3), (40, 1)), np.zeros((40, 3)))
    row = queries.rows[ranks.query_rows[4]]
    kept = whole.query_rows != row
    cut = Scores(
        query_rows=whole.query_rows[kept],
        candidate_rows=whole.candidate_rows[kept],
        scores=whole.scores[kept],
    )
    name = queries.ids[ranks.query_rows[4]]
    with pytest.raises(RunError, match=rf"x\.npz: it has no scores of 1 of \d+ queries, such as '{name}'"):
        rerank(queries, gallery, positives, ranks, cut, "x.npz")


def test_candidate_outside_the_gallery_is_an_error():
    queries, gallery, positives = drawn(40, 30)
    ranks = rank(queries.embeddings, gallery.embeddings, positives, gallery.ids)
    whole = scored(queries, gallery, np.tile(np.arange(3), (40, 1)), np.zeros((40, 3)))
    odd = Scores(query_rows=whole.query_rows, candidate_rows=whole.candidate_rows + 1, scores=whole.scores)
    with pytest.raises(RunError, match="candidates are not in the gallery that is ranked here, which has 30 items"):
        rerank(queries, gallery, positives, ranks, odd, "x.npz")


def own_ranks(split: Embedded, *ways: tuple[str, str]) -> dict[tuple[str, str], Ranks]:
    """The embeddings' own."""
    return {
        (first, second): rank(
            split.items[first].embeddings,
            split.items[second].embeddings,
            split.positives(first, second),
            split.items[second].ids,
        )
        for first, second in ways
    }


def write_scores(student: Student, split: Embedded, first: str, second: str, language: str) -> tuple[Path, dict]:
    """Random ones of the four nearest, and what they make of the ranks."""
    queries, gallery = split.items[first], split.items[second]
    candidates = nearest(queries.embeddings, gallery.embeddings, gallery.ids, 4)
    values = RNG.standard_normal(candidates.shape)
    way = Direction(dataset="toy", split="test", queries=first, gallery=second, language=language)
    path = scores.write(student.run, way, scored(queries, gallery, candidates, values), student.store)
    return path, slowly(queries, gallery, split.positives(first, second), candidates, values)


def test_directions_whose_scores_lie_by_the_run_are_reranked(make_run):
    student = open_student(make_run(noise=2.0), None)
    split = embedded.load(student, split="test", language="en", say=quiet)
    _, by_text = write_scores(student, split, "text", "image", "en")
    _, by_sound = write_scores(student, split, "audio", "image", "")
    ranks = own_ranks(split, ("text", "image"), ("image", "text"), ("audio", "image"))
    found = measure(student, split, ranks)
    assert set(found) == {"text-to-image", "audio-to-image"}
    assert found["text-to-image"].ranks.ranks.tolist() == [place for place, _ in by_text.values()]
    assert found["audio-to-image"].ranks.ranks.tolist() == [place for place, _ in by_sound.values()]


def test_report_has_both_orders_side_by_side(make_run):
    student = open_student(make_run(noise=2.0), None)
    split = embedded.load(student, split="test", language="en", say=quiet)
    write_scores(student, split, "audio", "image", "")
    ranks = own_ranks(split, ("audio", "image"))
    found = measure(student, split, ranks)
    own = {"audio-to-image": summarise(ranks["audio", "image"])}
    (_, by_embedding, *_), (_, by_score, *_) = table(found, own).rows
    assert (by_embedding, by_score) == ("embedding", "scores of 4")
    assert table(found, {"audio-to-image": summarise(ranks["audio", "image"], (2,))}, (2,)).columns[2] == "R@2"
    tree = as_tree(found)["audio-to-image"]
    assert (tree["k"], tree["num_queries"]) == (4, 20)
    assert tree["R@10"] == own["audio-to-image"]["R@10"]  # no order of the first four changes who is among ten


def test_option_ranks_by_the_scores_too(make_run, call):
    run = make_run(noise=2.0)
    student = open_student(run, None)
    split = embedded.load(student, split="test", language="en", say=quiet)
    _, by_text = write_scores(student, split, "text", "image", "en")
    tree = json.loads(call("--rerank", "--json").out)
    found = tree["rerank"]["text-to-image"]
    assert found["mean_rank"] == np.mean([place for place, _ in by_text.values()])
    assert tree["directions"]["text-to-image"]["R@1"] != found["R@1"]
    assert tree["directions"]["text-to-image"]["R@5"] == found["R@5"]  # of the first four, none left
    assert "by the scores of a cross-encoder" in call("--rerank").out
    assert "rerank" not in json.loads(call("--json").out)


def test_option_needs_scores(make_run, call):
    make_run()
    found = call("--rerank")
    assert found.exit_code != 0
    assert "has no scores of any direction" in found.err


def test_run_without_any_scores_is_an_error(make_run):
    student = open_student(make_run(), None)
    split = embedded.load(student, split="test", language="en", say=quiet)
    with pytest.raises(
        RunError, match="has no scores of any direction: toy-test-text-to-image-en; a cross-encoder"
    ):
        measure(student, split, own_ranks(split, ("text", "image")))


def test_scores_of_another_run_are_refused(make_run):
    student, other = (open_student(make_run(name, seed=seed), None) for name, seed in (("one", 0), ("two", 1)))
    split = embedded.load(other, split="test", language="en", say=quiet)
    path, _ = write_scores(other, split, "audio", "image", "")
    (student.run / "scores").mkdir()
    path.rename(student.run / "scores" / path.name)
    with pytest.raises(RunError, match=r"of another student or other items: student\.audio\.embeddings"):
        measure(student, split, own_ranks(split, ("audio", "image")))
