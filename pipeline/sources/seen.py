"""Which images a table has named so far, in some thirty bytes each: for tables that name an image in several rows.

Files are known by 64 bits of their names' hashes (two of a hundred million share theirs with a chance of 3 in
10,000), kept in sorted runs of which each is at least twice as long as the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from contract.repeats import hashes

# What is known of an image: its row (-1: it has not been seen), how many captions it has, and the hash of what the
# table says of it beside them.
FACTS = np.dtype([("row", np.int64), ("num_captions", np.int32), ("said", np.uint64)])

Keys = npt.NDArray[np.uint64]
Facts = npt.NDArray[np.void]


def keys(texts: Sequence[str]) -> Keys:
    """Their hashes, uint64 [n]."""
    return hashes(pa.array(texts, pa.string()))


class Seen:
    """Facts about images by the keys of their files."""

    def __init__(self) -> None:
        self._runs: list[tuple[Keys, Facts]] = []

    def find(self, wanted: Keys) -> Facts:
        """The facts of each, `FACTS` [n]."""
        found = np.full(len(wanted), np.array((-1, 0, 0), FACTS))
        for known, facts in self._runs:
            places, hits = _places(known, wanted)
            found[hits] = facts[places[hits]]
        return found

    def put(self, changed: Keys, facts: Facts) -> None:
        """Replace or add the facts, `FACTS` [n], of these keys, of which no two are equal."""
        is_new = np.ones(len(changed), bool)
        for known, old in self._runs:
            places, hits = _places(known, changed)
            old[places[hits]] = facts[hits]
            is_new &= ~hits
        self._runs.append(_sorted(changed[is_new], facts[is_new]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            longer, shorter = self._runs[-2:]
            merged = (np.concatenate(both) for both in zip(longer, shorter, strict=True))
            self._runs[-2:] = [_sorted(*merged)]


def _sorted(unsorted: Keys, facts: Facts) -> tuple[Keys, Facts]:
    order = np.argsort(unsorted, kind="stable")  # of two sorted runs, in linear time
    return unsorted[order], facts[order]


def _places(known: Keys, wanted: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Where among the `known` each of `wanted` would stand, and whether it does, [n] each."""
    if not len(known):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return places, known[places] == wanted
