"""Retrieval in every direction: exact ranks and how sure their figures are, with what they must be held against."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from contract.errors import ConfigError, DataError
from contract.ranking import (
    KS,
    Grades,
    Product,
    Ranks,
    bootstrap,
    clusters,
    interval,
    ndcg,
    per_query,
    random_baseline,
    random_ndcg,
    rank_both,
    summarise,
)
from eval import candidates, embedded, grading, overlap, products, protocols, rerank, teacher
from eval.candidates import Indexed, Wanted
from eval.embedded import Embedded
from eval.overlap import Overlap
from eval.protocols import Protocol
from eval.rank_files import Ranked
from eval.rerank import Reranked
from eval.runs import Student

Rows = npt.NDArray[np.int64]
Double = npt.NDArray[np.float64]
Figures = dict[str, float | int]

# Graded relevance counts among so many.
NDCG_K = 10
NDCG = f"nDCG@{NDCG_K}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """Queries of one modality among the items of another.

    `intervals` bound 95% of the bootstrap's draws of each figure; there are none where fewer than two queries are
    independent. `teachers` are the figures of frozen encoders on the same items. `ranked` is what became of every
    query; `ranks` say more where there is one gallery, and are None over folds.
    """

    queries: str
    gallery: str
    trained: bool
    figures: Figures
    random: Figures
    intervals: Mapping[str, tuple[float, float]]
    num_clusters: int
    teachers: Mapping[str, Figures]
    ranked: Ranked
    ranks: Ranks | None

    @property
    def name(self) -> str:
        """As in text-to-image."""
        return f"{self.queries}-to-{self.gallery}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Everything a report is made of.

    `beside` are other protocols on the same split, with their directions; `reranked` are directions, by name, in
    the order of a cross-encoder's scores.
    """

    student: Student
    split: Embedded
    protocol: Protocol
    ks: tuple[int, ...]
    directions: tuple[Direction, ...]
    overlap: Overlap
    indexed: Indexed | None = None
    reranked: Mapping[str, Reranked] = field(default_factory=dict)
    beside: Mapping[Protocol, tuple[Direction, ...]] = field(default_factory=dict)


def evaluate(
    student: Student,
    *,
    split: str | None,
    language: str,
    index: Wanted | None,
    say: Callable[[str], None],
    protocol: str | None = None,
    ks: Sequence[int] = KS,
    grades: Path | None = None,
    by_scores: bool = False,
) -> Measured:
    """Measure every ordered pair of modalities of one split; `index` says which index to hold beside it, if any.

    `protocol` names one, None takes what the split is; `grades` is a table of graded relevance. With `by_scores`
    the directions that have a cross-encoder's scores are ranked by them too. `say` is told what was decided on the
    way.
    """
    found = embedded.load(student, split=split, language=language, say=say)
    chosen, others = protocols.choose(protocol, found)
    ways = [(a, b) for a, b in itertools.combinations(found.items, 2) if len(found.positives(a, b))]
    if not ways:
        there = ", ".join(f"{len(items.rows):,} {modality} items" for modality, items in found.items.items())
        raise DataError(
            f"{student.store.path}: no two items of split {found.split} belong together; it has "
            f"{there or 'nothing'} that could be decoded"
        )
    if by_scores and chosen.num_folds > 1:
        raise ConfigError(
            f"--rerank: protocol {chosen.name} has {chosen.num_folds} galleries, scores are of the whole split's; "
            f"leave out --protocol"
        )
    table = None if grades is None else grading.read(grades)
    if table is not None:
        grading.require_known(table, found, say)
    compared = overlap.check(student, found)
    directed = [way for a, b in ways for way in ((b, a), (a, b))]
    measuring = _Measuring(
        student=student,
        ks=tuple(ks),
        table=table,
        product=products.best(say),
        teachers=teacher.teachers(overlap.target_stores(student)[0], found, say),
    )
    # First: what is wrong with an index is soon found, and ranking takes long.
    indexed = None if index is None else candidates.measure(student, found, directed, index, say)
    directions = measuring.directions(found, ways, chosen)
    own = {(way.queries, way.gallery): way.ranks for way in directions if way.ranks is not None}
    return Measured(
        student=student,
        split=found,
        protocol=chosen,
        ks=tuple(ks),
        directions=directions,
        overlap=compared,
        indexed=indexed,
        reranked=rerank.measure(student, found, own) if by_scores else {},
        beside={other: measuring.directions(found, [("image", "text")], other) for other in others},
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outcome:
    """One direction in one gallery: its figures, and `draws` float64 [draws] of each by the bootstrap."""

    ranks: Ranks
    ranked: Ranked
    figures: Figures
    random: Figures
    draws: Mapping[str, Double]

    @property
    def num_clusters(self) -> int:
        """How many queries are independent of each other."""
        return len(np.unique(self.ranked.clusters))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measuring:
    """What every direction is measured with."""

    student: Student
    ks: tuple[int, ...]
    table: grading.Table | None
    product: Product
    teachers: Sequence[teacher.Teacher]

    def directions(
        self, split: Embedded, ways: Sequence[tuple[str, str]], protocol: Protocol
    ) -> tuple[Direction, ...]:
        """Both directions of each pair of modalities, the mean over the protocol's folds."""
        return tuple(
            way for a, b in _with_progress(ways, protocol) for way in self._both(split, a, b, protocol)[::-1]
        )

    def _both(self, split: Embedded, first: str, second: str, protocol: Protocol) -> tuple[Direction, Direction]:
        folds = self._folds(split, first, second, protocol)
        taught: list[dict[str, Figures]] = [{}, {}]
        for one in self.teachers:
            if {first, second} <= set(one.split.items):
                found = self._folds(one.split, first, second, protocol)
                for figures, outcomes in zip(taught, found, strict=True):
                    figures[one.name] = _mean([fold.figures for fold in outcomes])
        forward, backward = (
            self._direction(*names, outcomes, figures)
            for names, outcomes, figures in zip(((first, second), (second, first)), folds, taught, strict=True)
        )
        return forward, backward

    def _direction(
        self, queries: str, gallery: str, folds: Sequence[_Outcome], teachers: Mapping[str, Figures]
    ) -> Direction:
        draws = _means([fold.draws for fold in folds]) if min(fold.num_clusters for fold in folds) > 1 else {}
        return Direction(
            queries=queries,
            gallery=gallery,
            trained=self.student.is_trained(queries, gallery),
            figures=_mean([fold.figures for fold in folds]),
            random=_mean([fold.random for fold in folds]),
            intervals={name: interval(found) for name, found in draws.items()},
            num_clusters=sum(fold.num_clusters for fold in folds),
            teachers=teachers,
            ranked=_joined([fold.ranked for fold in folds]),
            ranks=folds[0].ranks if len(folds) == 1 else None,
        )

    def _folds(
        self, split: Embedded, first: str, second: str, protocol: Protocol
    ) -> tuple[tuple[_Outcome, ...], tuple[_Outcome, ...]]:
        """Both directions, fold by fold."""
        found = [
            self._outcomes(number, fold, first, second)
            for number, fold in enumerate(protocols.folds(protocol, split))
        ]
        return tuple(forward for forward, _ in found), tuple(backward for _, backward in found)

    def _outcomes(self, number: int, split: Embedded, first: str, second: str) -> tuple[_Outcome, _Outcome]:
        """Both directions of one fold."""
        pairs, a, b = split.positives(first, second), split.items[first], split.items[second]
        forward, backward = rank_both(a.embeddings, b.embeddings, pairs, a.ids, b.ids, product=self.product)
        return (
            self._outcome(number, split, first, second, pairs, forward),
            self._outcome(number, split, second, first, pairs[:, ::-1], backward),
        )

    def _outcome(
        self, number: int, split: Embedded, queries: str, gallery: str, pairs: Rows, ranks: Ranks
    ) -> _Outcome:
        ids = split.items[queries].ids
        cluster = clusters(len(ids), pairs)
        num_positives = np.bincount(pairs[:, 0], minlength=len(ids))[ranks.query_rows]
        figures, random = summarise(ranks, self.ks), random_baseline(ranks.num_gallery, num_positives, self.ks)
        columns, medians = per_query(ranks, self.ks), {"median_rank": ranks.ranks.astype(np.float64)}
        draws = bootstrap(columns, cluster[ranks.query_rows], medians=medians, seed=number)
        values = {"mAP@R": columns["mAP@R"]}
        grades = grading.grades(split, queries, gallery, pairs, self.table)
        if grades is not None:
            gains, of_random = 100.0 * self._ndcg(split, queries, gallery, grades), random_ndcg(grades, NDCG_K)
            if (graded := ~np.isnan(gains)).any():
                figures |= {NDCG: float(gains[graded].mean()), "graded_queries": int(graded.sum())}
                random |= {NDCG: 100.0 * float(of_random[graded].mean())}
                draws |= bootstrap({NDCG: gains[graded]}, cluster[graded], seed=number)
            if graded[ranks.query_rows].all():
                values[NDCG] = gains[ranks.query_rows]
        return _Outcome(
            ranks=ranks,
            ranked=Ranked(
                ids=ids[ranks.query_rows],
                ranks=ranks.ranks,
                clusters=cluster[ranks.query_rows],
                folds=np.full(len(ranks.ranks), number),
                values=values,
            ),
            figures=figures,
            random=random,
            draws=draws,
        )

    def _ndcg(self, split: Embedded, queries: str, gallery: str, grades: Grades) -> Double:
        a, b = split.items[queries], split.items[gallery]
        return ndcg(a.embeddings, b.embeddings, grades, b.ids, NDCG_K, product=self.product)


def _joined(folds: Sequence[Ranked]) -> Ranked:
    """One after the other; clusters of different folds keep different numbers."""
    starts = np.cumsum([0, *(int(fold.clusters.max()) + 1 for fold in folds[:-1])])
    return Ranked(
        ids=np.concatenate([fold.ids for fold in folds]),
        ranks=np.concatenate([fold.ranks for fold in folds]),
        clusters=np.concatenate([fold.clusters + start for fold, start in zip(folds, starts, strict=True)]),
        folds=np.concatenate([fold.folds for fold in folds]),
        values={
            name: np.concatenate([fold.values[name] for fold in folds])
            for name in folds[0].values
            if all(name in fold.values for fold in folds)
        },
    )


def _mean(folds: Sequence[Figures]) -> Figures:
    """The mean of each figure over the folds that have it; counts are sums, the gallery's size a whole number."""
    figures: Figures = {}
    for name in dict.fromkeys(name for fold in folds for name in fold):
        values = [fold[name] for fold in folds if name in fold]
        if name == "num_gallery":
            figures[name] = round(sum(values) / len(values))
        else:
            figures[name] = sum(values) if isinstance(values[0], int) else float(np.mean(values))
    return figures


def _means(folds: Sequence[Mapping[str, Double]]) -> dict[str, Double]:
    names = dict.fromkeys(name for fold in folds for name in fold)
    return {name: np.mean([fold[name] for fold in folds if name in fold], axis=0) for name in names}


def _with_progress(ways: Sequence[tuple[str, str]], protocol: Protocol) -> Iterator[tuple[str, str]]:
    with tqdm(ways, desc=f"ranking for {protocol.name}", unit="pair", leave=False) as progress:
        for first, second in progress:
            progress.set_postfix_str(f"{first} and {second}")
            yield first, second
