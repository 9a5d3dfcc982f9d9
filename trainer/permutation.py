"""Random orders that are computed and never kept: place p of an order of n is a function of (key, n, p) alone.

The numbers are laid out in a rectangle of a columns and b rows, a = ceil(sqrt(n)), b = ceil(n / a), and a Feistel
network moves each along its row and then its column, eight times over:

    p = r a + c        c <- (c + F(r)) mod a        r <- (r + F(c)) mod b        F(x) = mixed(x + k) mod 2^64

with another word k for every F. What lands in one of the few cells beyond n goes through it again, until it is back
inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). So 10^9 rows cost no memory, and any step
of a run can be drawn without those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

NUM_ROUNDS = 8


def permuted(places: Numbers, size: int, key: Sequence[int]) -> Numbers:
    """What stands at these places, int64 [n], of the order of 0 .. size - 1 that belongs to `key`."""
    num_columns = math.isqrt(size - 1) + 1
    num_rows = -(-size // num_columns)
    words = _words(key, 2 * NUM_ROUNDS).reshape(NUM_ROUNDS, 2)
    numbers = places.astype(np.uint64)
    outside = np.ones(len(numbers), dtype=bool)
    while outside.any():
        numbers[outside] = _feistel(numbers[outside], np.uint64(num_columns), np.uint64(num_rows), words)
        outside = numbers >= size
    return numbers.astype(np.int64)


def drawn(values: Numbers, counts: Numbers | int, key: Sequence[int]) -> Numbers:
    """For each of the values a number from 0 .. count - 1, int64 [n], that depends on `key` and the value alone."""
    hashed = _mixed(_mixed(values.astype(np.uint64)) ^ _words(key, 1))
    return (hashed % np.asarray(counts, dtype=np.uint64)).astype(np.int64)


def _feistel(numbers: Words, num_columns: np.uint64, num_rows: np.uint64, words: Words) -> Words:
    rows, columns = np.divmod(numbers, num_columns)
    for first, second in words:
        columns = (columns + _mixed(rows + first) % num_columns) % num_columns
        rows = (rows + _mixed(columns + second) % num_rows) % num_rows
    return rows * num_columns + columns


def _words(key: Sequence[int], num_words: int) -> Words:
    # NumPy keeps what a SeedSequence gives the same from version to version.
    return np.random.SeedSequence(list(key)).generate_state(num_words, np.uint64).astype(np.uint64)


def _mixed(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of a word depends on all of it."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
