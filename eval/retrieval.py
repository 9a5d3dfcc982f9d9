"""Retrieval in every direction: exact ranks, the random baseline beside them, and how an index compares."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from contract.errors import DataError
from contract.ranking import KS, nearest, random_baseline, rank, summarise
from eval import embedded, gallery
from eval.embedded import Embedded, Items
from eval.gallery import Gallery
from eval.indexes import Index
from eval.indexes.flat import Flat
from eval.runs import Student

Rows = npt.NDArray[np.int64]
Figures = dict[str, float | int]

# Candidates that an index is asked for, and the queries its recall is measured on: enough for 3 decimals.
NUM_CANDIDATES = max(KS)
NUM_RECALL_QUERIES = 1000
# Two float32 products of the same unit vectors differ by less.
ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Queries of one modality among the items of another."""

    queries: str
    gallery: str
    trained: bool
    figures: Figures
    random: Figures
    candidates: Candidates | None

    @property
    def name(self) -> str:
        """As in text-to-image."""
        return f"{self.queries}-to-{self.gallery}"


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What an index proposed: the share of the exact `k` best it found, and how fast."""

    k: int
    recall: float
    num_recall_queries: int
    queries_per_second: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Indexed:
    """The index that was asked for: its configuration, folder and galleries by modality."""

    index: Index
    folder: Path
    galleries: Mapping[str, Gallery]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Everything a report is made of."""

    student: Student
    split: Embedded
    directions: tuple[Direction, ...]
    indexed: Indexed | None


def evaluate(
    student: Student, *, split: str | None, language: str, index: Path | None, say: Callable[[str], None]
) -> Measured:
    """Measure every ordered pair of modalities of one split; `index` is the folder of the index, if one is wanted.

    `say` is told what was decided on the way.
    """
    found = embedded.load(student, split=split, language=language, say=say)
    ways = [way for a, b in itertools.combinations(found.items, 2) for way in ((b, a), (a, b))]
    directed = {way: positives for way in ways if len(positives := found.positives(*way))}
    if not directed:
        raise DataError(
            f"{student.store.path}: no two items of split {found.split} belong together: nothing to retrieve"
        )
    indexed = None if index is None else _index(student, found, index, say)
    directions = tuple(
        _direction(student, found, a, b, positives, indexed) for (a, b), positives in _with_progress(directed)
    )
    return Measured(student=student, split=found, directions=directions, indexed=indexed)


def _direction(
    student: Student, split: Embedded, first: str, second: str, positives: Rows, indexed: Indexed | None
) -> Direction:
    queries, items = split.items[first], split.items[second]
    ranks = rank(queries.embeddings, items.embeddings, positives, items.ids)
    num_positives = np.bincount(positives[:, 0], minlength=len(queries.rows))[ranks.query_rows]
    return Direction(
        queries=first,
        gallery=second,
        trained=student.is_trained(first, second),
        figures=summarise(ranks),
        random=random_baseline(ranks.num_gallery, num_positives),
        candidates=None if indexed is None else _candidates(queries, items, indexed.galleries[second]),
    )


def _index(student: Student, split: Embedded, folder: Path, say: Callable[[str], None]) -> Indexed:
    index = Flat()
    galleries = {}
    for modality, items in split.items.items():
        description = gallery.describe(
            index,
            run=student.run,
            dataset=student.dataset,
            split=split.split,
            language=split.language,
            modality=modality,
            ids=items.ids,
            embeddings=items.embeddings,
        )
        galleries[modality] = gallery.open_or_build(index, folder, description, items.embeddings, say)
    return Indexed(index=index, folder=folder, galleries=galleries)


def _candidates(queries: Items, items: Items, built: Gallery) -> Candidates:
    k = min(NUM_CANDIDATES, len(items.rows))
    start = time.perf_counter()
    proposed = built.search(queries.embeddings, k)
    elapsed_s = time.perf_counter() - start
    sample = np.unique(np.linspace(0, len(queries.rows) - 1, NUM_RECALL_QUERIES).astype(np.int64))
    return Candidates(
        k=k,
        recall=_recall(queries.embeddings[sample], items, proposed[sample]),
        num_recall_queries=len(sample),
        queries_per_second=len(queries.rows) / elapsed_s,
    )


def _recall(queries: npt.NDArray[np.float32], items: Items, proposed: Rows) -> float:
    """The share of `proposed`, int64 [q, k], that score no less than the exact k-th best; ties are as good."""
    k = proposed.shape[1]
    last = nearest(queries, items.embeddings, items.ids, k)[:, -1:]
    threshold = _scores(queries, items, last) - ROUNDING
    return float(((_scores(queries, items, proposed) >= threshold) & (proposed >= 0)).mean())


def _scores(queries: npt.NDArray[np.float32], items: Items, rows: Rows) -> npt.NDArray[np.float64]:
    scores: npt.NDArray[np.float64] = np.einsum(
        "qd,qkd->qk", queries, items.embeddings[rows], dtype=np.float64, casting="safe"
    )
    return scores


def _with_progress(directed: Mapping[tuple[str, str], Rows]) -> Iterator[tuple[tuple[str, str], Rows]]:
    with tqdm(directed.items(), desc="ranking", unit="direction", leave=False) as progress:
        for (first, second), positives in progress:
            progress.set_postfix_str(f"{first}-to-{second}")
            yield (first, second), positives
