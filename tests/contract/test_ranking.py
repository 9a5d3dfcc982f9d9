from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import DataError
from contract.ranking import Ranks, nearest, random_baseline, rank, summarise


class Case(NamedTuple):
    queries: np.ndarray
    gallery: np.ndarray
    pairs: np.ndarray
    ids: np.ndarray


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Embeddings of -1, 0 and 1, which tie often, also all equal; ids in any order; any pairs, at least one."""
    num_queries, num_gallery = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    width = draw(st.integers(1, 6))
    values = st.sampled_from([-1.0, 0.0, 1.0] if draw(st.booleans()) else [1.0])
    queries, gallery = (
        draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=n, max_size=n))
        for n in (num_queries, num_gallery)
    )
    pair = st.tuples(st.integers(0, num_queries - 1), st.integers(0, num_gallery - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=10, unique=True))
    ids = draw(st.lists(st.text("a1Zé", max_size=3), min_size=num_gallery, max_size=num_gallery, unique=True))
    return Case(np.array(queries, np.float32), np.array(gallery, np.float32), np.array(pairs), np.array(ids))


def slow_score(query: np.ndarray, item: np.ndarray) -> Fraction:
    """A fraction that orders a query's gallery as the cosine does: sign(cosine) * cosine^2 * |query|^2."""
    dot = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(query, item, strict=True))
    norm = sum(Fraction(float(b)) ** 2 for b in item)
    return dot * abs(dot) / norm if norm else Fraction(0)


def slow_rank(case: Case) -> list[tuple[int, int, int]]:
    """(query row, rank, tied) by the definition, one query and one item at a time."""
    found = []
    for row, query in enumerate(case.queries):
        scores = [slow_score(query, item) for item in case.gallery]
        order = sorted(range(len(scores)), key=lambda g: (-scores[g], case.ids[g]))
        positives = {int(g) for q, g in case.pairs if q == row}
        if positives:
            place = next(place for place, g in enumerate(order) if g in positives)
            found.append((row, place + 1, scores.count(scores[order[place]]) - 1))
    return found


def as_tuples(ranks: Ranks) -> list[tuple[int, int, int]]:
    return list(zip(ranks.query_rows.tolist(), ranks.ranks.tolist(), ranks.tied.tolist(), strict=True))


def gaussian(num_queries: int = 40, num_gallery: int = 90, width: int = 33, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.standard_normal((n, width)).astype(np.float32) for n in (num_queries, num_gallery))
    pairs = np.stack([rng.integers(0, num_queries, 60), rng.integers(0, num_gallery, 60)], axis=1)
    ids = rng.permutation([f"item-{g}" for g in range(num_gallery)])
    return Case(queries, gallery, np.unique(pairs, axis=0), ids)


def nearly_tied(seed: int) -> Case:
    """A gallery of a few vectors, many times over, a float32's last digit apart: a product can't order them."""
    case = gaussian(width=32, seed=seed)
    rng = np.random.default_rng(seed)
    gallery = case.gallery[rng.integers(0, 4, len(case.gallery))]
    digits = rng.integers(-1, 2, gallery.shape)
    return case._replace(gallery=(gallery * (1 + digits * 2.0**-23)).astype(np.float32))


@given(cases())
def test_ranks_are_those_of_the_definition(case: Case) -> None:
    assert as_tuples(rank(*case)) == slow_rank(case)


@given(cases(), st.integers(1, 4), st.integers(1, 5))
def test_no_rank_depends_on_the_tiles(case: Case, height: int, width: int) -> None:
    assert as_tuples(rank(*case, tile=(height, width))) == as_tuples(rank(*case))


@given(cases(), st.integers(1, 4), st.integers(1, 5), st.data())
def test_nearest_has_the_order_of_the_definition(case: Case, height: int, width: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(case.gallery)))
    rows = nearest(case.queries, case.gallery, case.ids, k, tile=(height, width))
    for query, found in zip(case.queries, rows.tolist(), strict=True):
        order = sorted(range(len(case.ids)), key=lambda g: (-slow_score(query, case.gallery[g]), case.ids[g]))
        assert found == order[:k]


@pytest.mark.parametrize("seed", range(2))
def test_near_ties_are_ordered_as_exact_arithmetic_orders_them(seed: int) -> None:
    case = nearly_tied(seed)
    assert [entry[:2] for entry in as_tuples(rank(*case))] == [entry[:2] for entry in slow_rank(case)]


@pytest.mark.parametrize("make", [gaussian, nearly_tied])
@pytest.mark.parametrize("tile", [(1, 1), (7, 13), (40, 5), (1, 90), (64, 128)])
def test_no_rank_of_real_values_depends_on_the_tiles(make, tile: tuple[int, int]) -> None:
    case = make(seed=5)
    assert as_tuples(rank(*case, tile=tile)) == as_tuples(rank(*case))


@pytest.mark.parametrize("make", [gaussian, nearly_tied])
def test_no_rank_depends_on_the_order_of_rows(make) -> None:
    case = make(seed=6)
    rng = np.random.default_rng(1)
    queries, gallery = rng.permutation(len(case.queries)), rng.permutation(len(case.gallery))
    pairs = np.stack([np.argsort(queries)[case.pairs[:, 0]], np.argsort(gallery)[case.pairs[:, 1]]], axis=1)
    moved = rank(case.queries[queries], case.gallery[gallery], rng.permutation(pairs), case.ids[gallery])
    expected = {row: (place, tied) for row, place, tied in as_tuples(rank(*case))}
    assert {int(queries[row]): (place, tied) for row, place, tied in as_tuples(moved)} == expected


def test_no_rank_depends_on_the_length_of_a_vector() -> None:
    case = nearly_tied(7)
    rng = np.random.default_rng(2)
    # Powers of two, which change no digit of a float.
    queries, gallery = (x * 2.0 ** rng.integers(-20, 20, (len(x), 1)) for x in (case.queries, case.gallery))
    assert as_tuples(rank(*case._replace(queries=queries, gallery=gallery))) == as_tuples(rank(*case))


@pytest.mark.parametrize("new_id", ["a", "zzz"])
def test_a_copy_of_a_positive_that_is_a_positive_too_moves_no_rank(new_id: str) -> None:
    case = gaussian()
    gallery = np.concatenate([case.gallery, case.gallery[:1]])
    once = rank(case.queries, case.gallery, np.array([[0, 0]]), case.ids)
    pairs = np.array([[0, 0], [0, len(case.gallery)]])
    twice = rank(case.queries, gallery, pairs, np.append(case.ids, new_id))
    assert twice.ranks[0] == once.ranks[0]
    assert (once.tied[0], twice.tied[0]) == (0, 1)


@pytest.mark.parametrize(("copy_id", "moves"), [("a", 1), ("zzz", 0)])
def test_a_copy_that_is_no_positive_moves_a_rank_only_if_its_id_comes_first(copy_id: str, moves: int) -> None:
    case = gaussian()
    pairs = np.array([[0, 3]])
    before = rank(case.queries, case.gallery, pairs, case.ids)
    gallery = np.concatenate([case.gallery, case.gallery[3:4]])
    after = rank(case.queries, gallery, pairs, np.append(case.ids, copy_id))
    assert after.ranks[0] - before.ranks[0] == moves
    assert (before.tied[0], after.tied[0]) == (0, 1)


def test_collapsed_embeddings_rank_by_id_alone() -> None:
    ids = np.array([f"{g:04}" for g in range(500)])
    pairs = np.stack([np.arange(500), np.arange(500)], axis=1)
    ranks = rank(np.ones((500, 16)), np.full((500, 16), 0.3), pairs, ids, tile=(64, 100))
    assert ranks.ranks.tolist() == list(range(1, 501))
    assert summarise(ranks)["ties"] == 500
    assert summarise(ranks)["R@10"] == pytest.approx(2.0)


def test_ids_are_compared_as_text() -> None:
    ranks = rank(np.ones((1, 2)), np.ones((3, 2)), np.array([[0, 0]]), ["9", "10", "1"])
    assert ranks.ranks.tolist() == [3]


def test_queries_without_a_positive_are_left_out_and_counted() -> None:
    ranks = rank(np.eye(3), np.eye(3), np.array([[2, 2]]), ["a", "b", "c"])
    assert as_tuples(ranks) == [(2, 1, 0)]
    assert summarise(ranks)["num_queries"] == 1
    assert summarise(ranks)["queries_without_positive"] == 2


def test_nothing_to_rank_is_an_error() -> None:
    with pytest.raises(DataError, match="no query has a positive"):
        rank(np.eye(3), np.eye(3), np.empty((0, 2), np.int64), ["a", "b", "c"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_row(bad: float) -> None:
    gallery = np.ones((600, 4), np.float32)
    gallery[541, 2] = bad
    with pytest.raises(DataError, match="gallery row 541"):
        rank(np.ones((1, 4)), gallery, np.array([[0, 0]]), [str(g) for g in range(600)])


def test_summary_has_the_published_figures() -> None:
    ranks = Ranks(
        query_rows=np.arange(4),
        ranks=np.array([1, 4, 10, 25]),
        tied=np.array([0, 2, 0, 1]),
        num_gallery=30,
        num_without_positive=1,
    )
    assert summarise(ranks) == {
        "R@1": 25.0,
        "R@5": 50.0,
        "R@10": 75.0,
        "mean_rank": 10.0,
        "median_rank": 7.0,
        "num_queries": 4,
        "num_gallery": 30,
        "ties": 2,
        "queries_without_positive": 1,
    }


@given(st.integers(1, 7), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_random_baseline_is_the_mean_over_every_order(num_gallery: int, sizes: list[int]) -> None:
    sizes = [min(size, num_gallery) for size in sizes]
    choices = [list(itertools.combinations(range(1, num_gallery + 1), size)) for size in sizes]
    # As many copies of each choice as make every query weigh the same.
    total = math.lcm(*map(len, choices))
    ranks = np.concatenate([np.repeat([c[0] for c in choice], total // len(choice)) for choice in choices])
    baseline = random_baseline(num_gallery, np.array(sizes), ks=(1, 3, 10))
    assert baseline["R@1"] == pytest.approx(100 * (ranks <= 1).mean())
    assert baseline["R@3"] == pytest.approx(100 * (ranks <= 3).mean())
    assert baseline["R@10"] == pytest.approx(100 * (ranks <= 10).mean())
    assert baseline["mean_rank"] == pytest.approx(ranks.mean())
    assert baseline["median_rank"] == np.median(ranks)
    assert (baseline["num_queries"], baseline["num_gallery"]) == (len(sizes), num_gallery)


def test_random_baseline_of_the_official_protocol() -> None:
    baseline = random_baseline(1000, np.ones(5000, np.int64))
    assert (baseline["R@1"], baseline["R@10"]) == pytest.approx((0.1, 1.0))
    assert (baseline["mean_rank"], baseline["median_rank"]) == (500.5, 500.5)
