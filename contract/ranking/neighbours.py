"""Zero-shot classification: what the labels of the nearest neighbours say.

any of k     one of the k nearest has the query's label
vote of k    most of the k nearest have it; where several labels have most, the one that is nearest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.ranking.nearest import nearest
from contract.ranking.vectors import Floats, Mask, Rows, blocks

# Queries whose votes are counted at once.
COUNTED = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """Which queries are right with `k` neighbours: `any` and `vote`, bool [q] each."""

    k: int
    any: Mask
    vote: Mask


def neighbour_hits(
    queries: Floats,
    query_labels: Rows,
    bank: Floats,
    bank_labels: Rows,
    bank_ids: npt.ArrayLike,
    ks: Sequence[int] = (1, 3),
) -> list[Hits]:
    """Which queries their nearest neighbours classify rightly, for each of `ks`, none of which is beyond the bank.

    `queries` float [q, d] and `bank` float [n, d] are brought to unit length; labels are int64 [q] and [n], at
    least 0. By cosine, exact, ties in the order of ids.
    """
    found = nearest(queries, bank, bank_ids, max(ks))
    labels = bank_labels[found]
    return [
        Hits(
            k=k,
            any=(labels[:, :k] == query_labels[:, None]).any(axis=1),
            vote=_voted(labels[:, :k]) == query_labels,
        )
        for k in ks
    ]


def _voted(labels: Rows) -> Rows:
    """The label that stands most often in each row of int64 [q, k], nearest first; the nearest of several such."""
    voted = np.empty(len(labels), np.int64)
    for block in blocks(len(labels), COUNTED):
        some = labels[block]
        votes = np.stack([(some == column[:, None]).sum(axis=1) for column in some.T], axis=1)
        voted[block] = np.take_along_axis(some, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
    return voted
