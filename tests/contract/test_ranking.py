from __future__ import annotations

import sys
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import DataError
from contract.ranking import Matmul, Product, Ranks, nearest, pair_scores, rank, rank_both, summarise


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


@settings(deadline=None)
@given(cases())
def test_ranks_are_those_of_the_definition(case: Case) -> None:
    assert as_tuples(rank(*case)) == slow_rank(case)


@settings(deadline=None)
@given(cases(), st.integers(1, 4), st.integers(1, 5))
def test_no_rank_depends_on_the_tiles(case: Case, height: int, width: int) -> None:
    assert as_tuples(rank(*case, product=Matmul(tile=(height, width)))) == as_tuples(rank(*case))


@pytest.mark.parametrize(("crowded", "most"), [(0, 0), (0, 1 << 18), (1, 0)])
@pytest.mark.parametrize("seed", range(4))
def test_nearest_of_a_crowd_are_those_of_exact_scores(
    crowded: float, most: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["contract.ranking.nearest"]  # whose name is the function's, too
    monkeypatch.setattr(module, "CROWDED", crowded)
    monkeypatch.setattr(module, "MOST_DOUBTS", most)
    case = nearly_tied(seed)
    every = np.stack(np.indices((len(case.queries), len(case.gallery))), -1).reshape(-1, 2)
    scores = pair_scores(case.queries, case.gallery, every).reshape(len(case.queries), -1)
    for k in (1, 5):
        found = nearest(case.queries, case.gallery, case.ids, k, product=Matmul(tile=(16, 24)))
        assert found.tolist() == [np.lexsort((case.ids, -row))[:k].tolist() for row in scores]


def test_nearest_of_collapsed_embeddings_go_by_id_and_take_no_pair_each() -> None:
    queries, gallery = np.ones((500, 16), np.float32), np.ones((20_000, 16), np.float32)
    ids = np.array([f"{row:05}" for row in range(20_000)])[::-1]
    assert (nearest(queries, gallery, ids, 3) == [19_999, 19_998, 19_997]).all()


@settings(deadline=None)
@given(cases(), st.integers(1, 4), st.integers(1, 5), st.data())
def test_nearest_has_the_order_of_the_definition(case: Case, height: int, width: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(case.gallery)))
    rows = nearest(case.queries, case.gallery, case.ids, k, product=Matmul(tile=(height, width)))
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
    assert as_tuples(rank(*case, product=Matmul(tile=tile))) == as_tuples(rank(*case))


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
    ranks = rank(np.ones((500, 16)), np.full((500, 16), 0.3), pairs, ids, product=Matmul(tile=(64, 100)))
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


def slow_ranks_of_all(case: Case) -> list[tuple[int, list[int]]]:
    """(query row, the ranks of all of its positives), by the definition."""
    found = []
    for row, query in enumerate(case.queries):
        scores = [slow_score(query, item) for item in case.gallery]
        order = sorted(range(len(scores)), key=lambda g: (-scores[g], case.ids[g]))
        positives = {int(g) for q, g in case.pairs if q == row}
        if positives:
            found.append((row, [place for place, g in enumerate(order, start=1) if g in positives]))
    return found


def ranks_of_all(ranks: Ranks) -> list[tuple[int, list[int]]]:
    positives = ranks.positives
    assert positives is not None
    return [
        (int(row), positives.ranks[positives.queries == place].tolist())
        for place, row in enumerate(ranks.query_rows)
    ]


@settings(deadline=None)
@given(cases(), st.integers(1, 4), st.integers(1, 9))
def test_the_rank_of_every_positive_is_that_of_the_definition(case: Case, height: int, width: int) -> None:
    ranks = rank(*case, product=Matmul(tile=(height, width)))
    assert ranks_of_all(ranks) == slow_ranks_of_all(case)


@settings(deadline=None)
@given(cases())
def test_the_best_positive_alone_has_the_same_rank(case: Case) -> None:
    alone = rank(*case, every=False)
    assert as_tuples(alone) == as_tuples(rank(*case))
    assert alone.positives is None


@settings(deadline=None)
@given(cases(), st.integers(1, 4), st.integers(1, 5))
def test_one_product_ranks_both_ways_as_two_do(case: Case, height: int, width: int) -> None:
    query_ids = [f"q{row}" for row in range(len(case.queries))]
    forward, backward = rank_both(
        case.queries, case.gallery, case.pairs, query_ids, case.ids, product=Matmul(tile=(height, width))
    )
    other_way = Case(case.gallery, case.queries, case.pairs[:, ::-1], np.array(query_ids))
    assert ranks_of_all(forward) == ranks_of_all(rank(*case))
    assert ranks_of_all(backward) == ranks_of_all(rank(*other_way))
    assert (as_tuples(forward), as_tuples(backward)) == (as_tuples(rank(*case)), as_tuples(rank(*other_way)))


@pytest.mark.parametrize("make", [gaussian, nearly_tied])
@pytest.mark.parametrize("tile", [(7, 13), (64, 128), (40, 8)])
def test_real_values_rank_the_same_both_ways(make, tile: tuple[int, int]) -> None:
    case = make(seed=3)
    ids = np.array([f"q{row:02}" for row in range(len(case.queries))])
    forward, backward = rank_both(case.queries, case.gallery, case.pairs, ids, case.ids, product=Matmul(tile=tile))
    assert ranks_of_all(forward) == ranks_of_all(rank(*case))
    assert ranks_of_all(backward) == ranks_of_all(rank(case.gallery, case.queries, case.pairs[:, ::-1], ids))


def test_a_pair_that_is_given_twice_counts_once() -> None:
    case = gaussian()
    twice = case._replace(pairs=np.concatenate([case.pairs, case.pairs]))
    assert ranks_of_all(rank(*twice)) == ranks_of_all(rank(*case))


class OtherSums:
    """A product that adds up the columns in another order, as another BLAS, or a GPU, does."""

    tile = (16, 32)

    def __call__(self, left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        order = np.random.default_rng(0).permutation(left.shape[1])
        out[:] = 0
        for column in order:
            out += left[:, column : column + 1] * right[:, column]


class Coarse(OtherSums):
    """A product that keeps five bits of its operands."""

    def __call__(self, left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        mantissa, exponent = np.frexp(left)
        super().__call__(np.ldexp(np.rint(mantissa * 32) / 32, exponent).astype(np.float32), right, out)


@pytest.mark.parametrize("make", [gaussian, nearly_tied])
def test_no_rank_depends_on_who_makes_the_product(make) -> None:
    case = make(seed=4)
    product: Product = OtherSums()
    assert ranks_of_all(rank(*case, product=product)) == ranks_of_all(rank(*case))
    found = nearest(case.queries, case.gallery, case.ids, 10, product=product)
    assert (found == nearest(case.queries, case.gallery, case.ids, 10)).all()


def test_a_product_that_is_less_exact_than_float32_is_noticed() -> None:
    with pytest.raises(AssertionError, match="less exact"):
        rank(*gaussian(width=512), product=Coarse())


@pytest.mark.parametrize("make", [gaussian, nearly_tied])
def test_no_rank_depends_on_the_scale_of_all(make) -> None:
    case = make(seed=8)
    scaled = case._replace(queries=case.queries.astype(float) * 7.3, gallery=case.gallery.astype(float) * 1e-200)
    assert ranks_of_all(rank(*scaled)) == ranks_of_all(rank(*case))


def test_copies_that_were_scaled_tie_all_the_same() -> None:
    case = gaussian(width=64)
    rng = np.random.default_rng(3)
    gallery = np.tile(case.gallery[:30], (3, 1)).astype(np.float64)
    scaled = gallery * rng.uniform(0.1, 10, (len(gallery), 1))
    ids = np.array([f"{g:03}" for g in rng.permutation(len(gallery))])
    pairs = np.stack([np.arange(40), np.arange(40)], axis=1)
    before, after = (rank(case.queries, vectors, pairs, ids) for vectors in (gallery, scaled))
    assert as_tuples(after) == as_tuples(before)
    assert (after.tied == 2).all()


def test_a_zero_vector_scores_nothing_and_ranks_by_id() -> None:
    ranks = rank(np.eye(2)[:1], np.zeros((3, 2)), np.array([[0, 2]]), ["a", "b", "c"])
    assert as_tuples(ranks) == [(0, 3, 2)]


def test_one_item_is_found() -> None:
    ranks = rank(np.ones((1, 1)), np.ones((1, 1)), np.array([[0, 0]]), ["a"])
    assert as_tuples(ranks) == [(0, 1, 0)]


def test_pair_scores_are_cosines() -> None:
    case = gaussian()
    unit_queries, unit_gallery = (
        x / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (case.queries, case.gallery)
    )
    expected = (unit_queries[case.pairs[:, 0]] * unit_gallery[case.pairs[:, 1]]).sum(axis=1)
    assert pair_scores(case.queries, case.gallery, case.pairs) == pytest.approx(expected, abs=1e-11)
