"""Ranks by a cross-encoder's scores: each query's candidates in their order, then the rest in the embeddings'.

order(query) = candidates by (score, descending; id, ascending), then all others as the embeddings have them
rank(query)  = 1 + #(items before its first positive in that order)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract import scores
from contract.errors import RunError
from contract.ranking import KS, Ranks, pair_scores, summarise
from contract.scores import Direction, Scores
from eval.embedded import Embedded, Items
from eval.runs import Student

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BLOCK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Reranked:
    """The ranks of one direction after its `k` candidates were put in the order of their scores.

    `reachable` is the share, in percent, of queries that have a positive among their candidates: no order of these
    gives a higher R@K for any K up to k.
    """

    k: int
    ranks: Ranks
    reachable: float

    def figures(self, ks: Sequence[int] = KS) -> dict[str, float | int]:
        """The same figures as the embeddings' own; of positives behind the best one nothing is known."""
        return summarise(self.ranks, ks)


def measure(student: Student, split: Embedded, ranks: Mapping[tuple[str, str], Ranks]) -> dict[str, Reranked]:
    """Re-rank each direction that has scores beside the run; `ranks` are the embeddings', by (queries, gallery)."""
    found = {}
    for (first, second), own in ranks.items():
        way = _direction(student, split, first, second)
        file = scores.path(student.run, way)
        if file.is_file():
            read, positives = scores.read(student.run, way, student.store), split.positives(first, second)
            queries, gallery = split.items[first], split.items[second]
            found[f"{first}-to-{second}"] = rerank(queries, gallery, positives, own, read, str(file))
    if not found:
        names = ", ".join(_direction(student, split, *way).name for way in ranks)
        raise RunError(
            f"{student.run / 'scores'} has no scores of any direction: {names}; a cross-encoder writes them"
        )
    return found


def rerank(queries: Items, gallery: Items, positives: Rows, ranks: Ranks, found: Scores, where: str) -> Reranked:
    """The same queries as in `ranks`, ranked by the scores; `positives` int64 [p, 2] are positions in the items.

    `where` names the scores in an error.
    """
    of_query = _positions(found.query_rows, queries.rows)
    rows = np.full(len(queries.rows), -1, np.int64)
    rows[of_query[of_query >= 0]] = np.flatnonzero(of_query >= 0)
    rows = rows[ranks.query_rows]
    if (lacking := rows < 0).any():
        example = queries.ids[ranks.query_rows[np.argmax(lacking)]]
        raise RunError(
            f"{where}: it has no scores of {int(lacking.sum()):,} of {len(rows):,} queries, such as "
            f"{str(example)!r}; {scores.REMEDY}"
        )
    candidates, values = _positions(found.candidate_rows[rows], gallery.rows), found.scores[rows]
    if (outside := candidates < 0).any():
        raise RunError(
            f"{where}: {int(outside.sum()):,} candidates are not in the gallery that is ranked here, which has "
            f"{len(gallery.rows):,} items; {scores.REMEDY}"
        )
    is_positive = _is_positive(ranks.query_rows, candidates, positives, len(gallery.rows))
    within, tied = _ranks_within(values, gallery.ids[candidates], is_positive)
    hit = is_positive.any(axis=1)
    behind = np.zeros(len(rows), np.int64)
    behind[~hit] = _num_behind(queries, gallery, positives, ranks.query_rows[~hit], candidates[~hit])
    return Reranked(
        k=found.k,
        ranks=Ranks(
            query_rows=ranks.query_rows,
            ranks=np.where(hit, within, ranks.ranks + behind),
            tied=np.where(hit, tied, ranks.tied),
            num_gallery=ranks.num_gallery,
            num_without_positive=ranks.num_without_positive,
        ),
        reachable=100.0 * float(hit.mean()),
    )


def _direction(student: Student, split: Embedded, first: str, second: str) -> Direction:
    language = split.language if "text" in (first, second) else ""
    return Direction(dataset=student.dataset, split=split.split, queries=first, gallery=second, language=language)


def _positions(rows: Rows, among: Rows) -> Rows:
    """Where each of `rows` (any shape) stands in `among`, int64 ascending [n]; -1 for what does not."""
    places = np.minimum(np.searchsorted(among, rows), len(among) - 1)
    return np.where(among[places] == rows, places, -1)


def _is_positive(query_rows: Rows, candidates: Rows, positives: Rows, num_gallery: int) -> Mask:
    """Which candidates, [q, k], belong to their query."""
    known = positives[:, 0] * num_gallery + positives[:, 1]
    return np.isin(query_rows[:, None] * num_gallery + candidates, known)


def _ranks_within(
    values: npt.NDArray[np.float32], ids: npt.NDArray[np.str_], is_positive: Mask
) -> tuple[Rows, Rows]:
    """Rank of the best positive among the candidates, and how many others score as it does, int64 [q] each.

    What stands there for a query without a positive among them means nothing.
    """
    order = np.empty(ids.shape, np.int64)
    for block in range(0, len(ids), BLOCK):
        part = slice(block, block + BLOCK)
        by_id = np.argsort(ids[part], axis=1, kind="stable")
        by_score = np.argsort(-np.take_along_axis(values[part], by_id, axis=1), axis=1, kind="stable")
        order[part] = np.take_along_axis(by_id, by_score, axis=1)
    place = np.argmax(np.take_along_axis(is_positive, order, axis=1), axis=1)
    best = np.take_along_axis(values, np.take_along_axis(order, place[:, None], axis=1), axis=1)
    return place + 1, (values == best).sum(axis=1) - 1


def _num_behind(queries: Items, gallery: Items, positives: Rows, query_rows: Rows, candidates: Rows) -> Rows:
    """How many candidates stand behind the best positive by embedding, int64 [m], where none is a positive itself.

    None does where the candidates are the k nearest; what an index proposed may. Each of them goes before the
    positive all the same, and moves it back by one.
    """
    own = positives[np.isin(positives[:, 0], query_rows)]
    scores = pair_scores(queries.embeddings, gallery.embeddings, own)
    order = np.lexsort((gallery.ids[own[:, 1]], -scores, own[:, 0]))
    first = order[np.unique(own[order, 0], return_index=True)[1]]  # of the queries in ascending order, as they are
    best, best_ids = scores[first][:, None], gallery.ids[own[first, 1]][:, None]
    pairs = np.stack([np.repeat(query_rows, candidates.shape[1]), candidates.ravel()], axis=1)
    others = pair_scores(queries.embeddings, gallery.embeddings, pairs).reshape(candidates.shape)
    behind: Rows = ((others < best) | ((others == best) & (gallery.ids[candidates] > best_ids))).sum(axis=1)
    return behind
