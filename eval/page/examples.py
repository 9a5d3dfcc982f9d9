"""Queries that are worth a look, of every direction, each with what it found.

best      rank 1, those most similar to their answer
near      ranks 2 to 5, evenly drawn
worst     the largest ranks
gained    the rank fell by the largest factor since another run
lost      it rose by the largest factor
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.ranking import nearest
from eval.embedded import Embedded
from eval.page.changes import Change
from eval.page.outcomes import Outcomes, best_positives, evenly, scores
from eval.page.routes import Route, Ways, routes

Rows = npt.NDArray[np.int64]

KINDS = ("best", "near", "worst", "gained", "lost")
NUM_EXAMPLES = 6  # of a kind and direction
NUM_HITS = 5
NEAR = (2, 5)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A gallery item for a query: `position` in the gallery, `rank` from 1, `score` a cosine."""

    position: int
    rank: int
    score: float
    is_match: bool
    route: Route | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query, by its position, the best hits, and its right answer where that is not among them."""

    kind: str
    direction: str
    queries: str
    gallery: str
    position: int
    rank: int
    rank_then: int | None
    hits: tuple[Hit, ...]
    answer: Hit | None


def examples(outcome: Outcomes, split: Embedded, ways: Ways, change: Change | None) -> tuple[Example, ...]:
    """The examples of a direction, kind after kind."""
    kinds = [(kind, int(query)) for kind, chosen in _chosen(outcome, change).items() for query in chosen]
    positions = np.unique(np.array([query for _, query in kinds], np.int64))
    found = _Found(outcome, split, ways, positions)
    return tuple(
        Example(
            kind=kind,
            direction=outcome.way.name,
            queries=outcome.way.queries,
            gallery=outcome.way.gallery,
            position=query,
            rank=found.ranks[query],
            rank_then=None if change is None else change.rank_then(query),
            hits=(hits := found.hits(query)),
            answer=None if any(hit.is_match for hit in hits) else found.answer(query),
        )
        for kind, query in kinds
    )


def _chosen(outcome: Outcomes, change: Change | None) -> Mapping[str, Rows]:
    """Positions of queries by kind."""
    queries, ranks = outcome.ranks.query_rows, outcome.ranks.ranks
    first = queries[ranks == 1]
    similar = scores(outcome, first, best_positives(outcome, first))
    behind = np.argsort(-ranks, kind="stable")
    chosen = {
        "best": first[np.argsort(-similar, kind="stable")][:NUM_EXAMPLES],
        "near": evenly(queries[(ranks >= NEAR[0]) & (ranks <= NEAR[1])], NUM_EXAMPLES),
        "worst": queries[behind[ranks[behind] > NEAR[1]]][:NUM_EXAMPLES],
    }
    if change is not None:
        chosen["gained"] = change.moved(NUM_EXAMPLES, better=True)
        chosen["lost"] = change.moved(NUM_EXAMPLES, better=False)
    return chosen


class _Found:
    """The best hits of a few queries, looked up together."""

    def __init__(self, outcome: Outcomes, split: Embedded, ways: Ways, positions: Rows) -> None:
        queries, gallery = outcome.queries, outcome.gallery
        place = np.searchsorted(outcome.ranks.query_rows, positions)
        self.ranks = dict(zip(positions.tolist(), outcome.ranks.ranks[place].tolist(), strict=True))
        k = min(NUM_HITS, len(gallery.rows))
        found = nearest(queries.embeddings[positions], gallery.embeddings, gallery.ids, k)
        self._found = dict(zip(positions.tolist(), found.tolist(), strict=True))
        answers = best_positives(outcome, positions)
        self._answers = dict(zip(positions.tolist(), answers.tolist(), strict=True))
        pairs = [(query, hit) for query, hits in self._found.items() for hit in (*hits, self._answers[query])]
        left, right = np.array(pairs, np.int64).reshape(-1, 2).T
        self._scores = dict(zip(pairs, scores(outcome, left, right).tolist(), strict=True))
        self._routes = routes(ways, split, outcome, list(self._scores))
        matching = outcome.positives[np.isin(outcome.positives[:, 0], positions)]
        self._matching = {(query, item) for query, item in matching.tolist()}

    def hits(self, query: int) -> tuple[Hit, ...]:
        return tuple(self._hit(query, item, place) for place, item in enumerate(self._found[query], start=1))

    def answer(self, query: int) -> Hit:
        return self._hit(query, self._answers[query], self.ranks[query])

    def _hit(self, query: int, item: int, rank: int) -> Hit:
        return Hit(
            position=item,
            rank=rank,
            score=self._scores[query, item],
            is_match=(query, item) in self._matching,
            route=self._routes.get((query, item)),
        )
