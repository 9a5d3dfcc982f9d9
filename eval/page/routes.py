"""Where the hits of an untrained direction come from: the modality that both of its ends were trained with.

A caption finds a sound although no caption was trained with a sound, because both were trained with images: the
caption is close to an image (first step), and the image to the sound (second step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eval.embedded import Embedded
from eval.page.outcomes import Outcomes, rank_among

Rows = npt.NDArray[np.int64]
Ways = Mapping[tuple[str, str], Outcomes]  # (queries, gallery) -> outcomes

K = 10


@dataclass(frozen=True, kw_only=True)
class Route:
    """How a hit was reached: `position` of the item between; its rank for the query, and the hit's rank for it."""

    middle: str
    position: int
    first_rank: int
    second_rank: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """The queries whose two trained steps both, or one, or neither of them stay within `K`."""

    first_within: bool
    second_within: bool
    num_queries: int
    num_within: int


@dataclass(frozen=True, kw_only=True)
class Steps:
    """An untrained direction, the modality between, and its queries by what became of the two steps."""

    direction: str
    first: str
    second: str
    middle: str
    steps: tuple[Step, ...]


def middle_of(ways: Ways, queries: str, gallery: str) -> str | None:
    """The modality that both ends of an untrained direction were trained with; None for a trained one."""
    if ways[queries, gallery].way.trained:
        return None
    for middle in {name for way in ways for name in way}:
        legs = [ways.get((queries, middle)), ways.get((middle, gallery))]
        if middle not in (queries, gallery) and all(leg is not None and leg.way.trained for leg in legs):
            return middle
    return None


def steps(ways: Ways, split: Embedded) -> tuple[Steps, ...]:
    """The two steps of every untrained direction that has a modality between."""
    return tuple(
        _steps(ways, split, queries, middle, gallery)
        for queries, gallery in ways
        if (middle := middle_of(ways, queries, gallery)) is not None
    )


def routes(
    ways: Ways, split: Embedded, outcome: Outcomes, pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Route]:
    """The route of each (query, hit) of `pairs` that has one; positions as in `Outcomes`."""
    middle = middle_of(ways, outcome.way.queries, outcome.way.gallery)
    if middle is None:
        return {}
    partners = split.positives(outcome.way.gallery, middle)
    between = dict(zip(partners[::-1, 0].tolist(), partners[::-1, 1].tolist(), strict=True))
    routed = [(query, hit, between[hit]) for query, hit in pairs if hit in between]
    queries, hits, middles = np.array(routed, np.int64).reshape(-1, 3).T
    items = split.items[middle]
    first = rank_among(outcome.queries.embeddings[queries], items, middles)
    second = rank_among(items.embeddings[middles], outcome.gallery, hits)
    return {
        (query, hit): Route(middle=middle, position=position, first_rank=int(a), second_rank=int(b))
        for (query, hit, position), a, b in zip(routed, first, second, strict=True)
    }


def _steps(ways: Ways, split: Embedded, queries: str, middle: str, gallery: str) -> Steps:
    direct, to_middle, from_middle = ways[queries, gallery], ways[queries, middle], ways[middle, gallery]
    num_queries = len(direct.queries.rows)
    first = _within(to_middle, num_queries)
    # Of several items between, such as two photographs of one sound, the best second step counts.
    shared = split.positives(queries, middle)
    second = np.zeros(num_queries, bool)
    np.logical_or.at(second, shared[:, 0], _within(from_middle, len(to_middle.gallery.rows))[shared[:, 1]])
    ranked, within = direct.ranks.query_rows, direct.ranks.ranks <= K
    found = []
    for a, b in ((True, True), (True, False), (False, True), (False, False)):
        chosen = (first[ranked] == a) & (second[ranked] == b)
        found.append(
            Step(
                first_within=a,
                second_within=b,
                num_queries=int(chosen.sum()),
                num_within=int((chosen & within).sum()),
            )
        )
    return Steps(
        direction=direct.way.name,
        first=to_middle.way.name,
        second=from_middle.way.name,
        middle=middle,
        steps=tuple(found),
    )


def _within(outcome: Outcomes, num_queries: int) -> npt.NDArray[np.bool_]:
    """Which queries of a direction rank a positive within `K`, bool [q]; those without a positive do not."""
    within = np.zeros(num_queries, bool)
    within[outcome.ranks.query_rows] = outcome.ranks.ranks <= K
    return within
