from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trainer.permutation import drawn, permuted

Numbers = npt.NDArray[np.int64]
MASK = 2**64 - 1


def order(size: int, *key: int) -> Numbers:
    return permuted(np.arange(size), size, key)


def surprise(counts: npt.NDArray[Any], degrees: int) -> float:
    """Chi-square of counts that are expected to be equal, in standard deviations above its mean."""
    expected = counts.mean()
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


def slowly_permuted(place: int, size: int, key: tuple[int, ...]) -> int:
    """The module's docstring, word for word."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    a = math.isqrt(size)
    a += a * a < size
    b = -(-size // a)
    words = np.random.SeedSequence(key).generate_state(16, np.uint64).tolist()
    while True:
        r, c = divmod(place, a)
        for k in range(8):
            c = (c + mixed((r + words[2 * k]) & MASK)) % a
            r = (r + mixed((c + words[2 * k + 1]) & MASK)) % b
        place = r * a + c
        if place < size:
            return place


@pytest.fixture(scope="module")
def orders() -> Numbers:
    """4,000 orders of 12, each of another key: int64 [4000, 12]."""
    return np.stack([order(12, 3, 1, epoch) for epoch in range(4000)])


@pytest.mark.parametrize("key", [(0,), (0, 0, 0, 0), (2**62, 7, 41, 1)])
def test_order_is_a_bijection_for_every_size(key: tuple[int, ...]) -> None:
    for size in [*range(1, 301), 1000, 4097, 65_537, 118_287]:
        assert np.array_equal(np.sort(order(size, *key)), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 300, 118_287, 10**9, 2**40])
def test_order_is_what_a_loop_over_the_docstring_gives(size: int) -> None:
    places = np.unique(np.linspace(0, size - 1, 50).astype(np.int64))
    expected = [slowly_permuted(place, size, (5, 2, 1)) for place in places.tolist()]
    assert permuted(places, size, (5, 2, 1)).tolist() == expected


def test_part_of_an_order_is_that_part_of_the_whole() -> None:
    places = np.array([70, 3, 99, 0])
    assert np.array_equal(permuted(places, 100, (1, 2)), order(100, 1, 2)[places])


def test_orders_of_different_keys_agree_no_more_than_by_chance() -> None:
    first = order(1000, 0, 0, 0)
    for other in [(0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        assert (first == order(1000, *other)).sum() < 10


def test_every_number_is_as_likely_at_every_place(orders: Numbers) -> None:
    counts = np.stack([np.bincount(column, minlength=12) for column in orders.T])
    assert abs(surprise(counts, 11 * 11)) < 4


def test_every_pair_is_as_likely_at_neighbouring_places(orders: Numbers) -> None:
    pairs = [np.bincount(12 * orders[:, p] + orders[:, p + 1], minlength=144).reshape(12, 12) for p in range(11)]
    different = ~np.eye(12, dtype=bool)
    assert all(abs(surprise(counts[different], 131)) < 4 for counts in pairs)
    assert abs(surprise(sum(pairs)[different], 131)) < 4  # type: ignore[index]


def test_every_order_of_five_is_as_likely() -> None:
    counts = Counter(tuple(order(5, 7, epoch).tolist()) for epoch in range(6000))
    assert abs(surprise(np.array([counts[each] for each in permutations(range(5))]), 119)) < 4


@pytest.mark.parametrize("size", [10**9, 2**40])
def test_order_of_a_huge_dataset_costs_no_more_than_what_is_asked_of_it(size: int) -> None:
    places = size // 2 + np.arange(10_000)
    tracemalloc.start()
    found = permuted(places, size, (0, 0, 0, 0))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(found)) == 10_000
    assert found.min() >= 0
    assert found.max() < size
    assert peak_bytes < 20 * places.nbytes


def test_what_is_drawn_depends_on_the_value_alone() -> None:
    values = np.arange(1000)
    whole = drawn(values, 7, (1, 2))
    some = np.array([999, 3, 3, 500])
    assert np.array_equal(drawn(some, 7, (1, 2)), whole[some])
    assert np.array_equal(drawn(some, np.full(4, 7), (1, 2)), whole[some])
    assert not np.array_equal(drawn(values, 7, (1, 3)), whole)


def test_what_is_drawn_is_uniform_over_values_and_over_keys() -> None:
    assert abs(surprise(np.bincount(drawn(np.arange(70_000), 7, (0, 0))), 6)) < 4
    one = np.concatenate([drawn(np.array([42]), 5, (0, epoch)) for epoch in range(5000)])
    assert abs(surprise(np.bincount(one), 4)) < 4
    # Neighbouring values have nothing to do with each other.
    many = drawn(np.arange(100_000), 5, (9,))
    assert abs(surprise(np.bincount(5 * many[:-1] + many[1:], minlength=25), 24)) < 4


def test_what_is_drawn_is_below_each_count() -> None:
    counts = np.arange(1, 1001)
    found = drawn(np.zeros(1000, np.int64) + 5, counts, (0,))
    assert (found >= 0).all()
    assert (found < counts).all()
