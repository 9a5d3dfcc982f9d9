"""Graded relevance: nDCG (Järvelin and Kekäläinen 2002).

DCG@k = sum_{i=1..k} (2^grade_i - 1) / log2(i + 1),     nDCG@k = DCG@k / (DCG@k of the best order there is)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.ranking.nearest import nearest
from contract.ranking.product import Product
from contract.ranking.vectors import Double, Floats, Rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Grades:
    """How relevant each gallery item is to each query; what is said nothing of has grade 0.

    `pairs` int64 [p, 2] (query row, gallery row), each once, have `grades` float64 [p], at least 0. Of the others,
    those of the query's label have grade 1; labels, int64 [q] and [g], are negative where there is none.
    """

    pairs: Rows
    grades: Double
    query_labels: Rows
    gallery_labels: Rows

    def of(self, found: Rows) -> Double:
        """The grades of gallery rows `found` int64 [q, k] of each query, float64 [q, k]."""
        labels = self.query_labels[:, None]
        grades: Double = ((self.gallery_labels[found] == labels) & (labels >= 0)).astype(np.float64)
        wanted = np.arange(len(found))[:, None] * len(self.gallery_labels) + found
        keys = self.pairs[:, 0] * len(self.gallery_labels) + self.pairs[:, 1]
        order = np.argsort(keys)
        place = np.searchsorted(keys[order], wanted)
        stated = np.isin(wanted, keys)
        grades[stated] = self.grades[order[place[stated]]]
        return grades

    def best(self, k: int) -> Double:
        """The grades of the best order there is, float64 [q, k], 0 where the gallery has no more."""
        query, grades = self.pairs[:, 0], self.grades
        order = np.lexsort((-grades, query))
        number = np.arange(len(order)) - np.searchsorted(query[order], query[order])
        stated = np.zeros((len(self.query_labels), k))
        stated[query[order][number < k], number[number < k]] = grades[order][number < k]
        same_label = np.arange(k) < self._num_of_label[:, None]
        best: Double = np.sort(np.concatenate([stated, same_label], axis=1), axis=1)[:, ::-1][:, :k]
        return best

    @property
    def mean_gains(self) -> Double:
        """2^grade - 1 of a gallery item drawn at random, float64 [q]."""
        stated = np.bincount(self.pairs[:, 0], weights=_gains(self.grades), minlength=len(self.query_labels))
        gains: Double = (stated + self._num_of_label) / len(self.gallery_labels)
        return gains

    @property
    def _num_of_label(self) -> Rows:
        """How many gallery items have grade 1 because of their label, int64 [q]."""
        labels, counts = np.unique(self.gallery_labels, return_counts=True)
        place = np.minimum(np.searchsorted(labels, self.query_labels), len(labels) - 1)
        of_label = np.where((labels[place] == self.query_labels) & (self.query_labels >= 0), counts[place], 0)
        query, item = self.pairs.T
        stated = (self.query_labels[query] >= 0) & (self.query_labels[query] == self.gallery_labels[item])
        return of_label - np.bincount(query[stated], minlength=len(of_label))


def ndcg(
    queries: Floats,
    gallery: Floats,
    grades: Grades,
    gallery_ids: npt.ArrayLike,
    k: int,
    *,
    product: Product | None = None,
) -> Double:
    """nDCG@k of each query, float64 [q], NaN where nothing is relevant; the order is that of `nearest`."""
    found = nearest(queries, gallery, gallery_ids, min(k, len(gallery)), product=product)
    return _share(_dcg(grades.of(found)), grades, k)


def random_ndcg(grades: Grades, k: int) -> Double:
    """The expected nDCG@k of a random order for each query, float64 [q], NaN where nothing is relevant."""
    shown = min(k, len(grades.gallery_labels))
    return _share(grades.mean_gains * _discounts(shown).sum(), grades, k)


def _share(found: Double, grades: Grades, k: int) -> Double:
    best = _dcg(grades.best(k))
    share: Double = np.divide(found, best, out=np.full(len(best), np.nan), where=best > 0)
    return share


def _dcg(grades: Double) -> Double:
    dcg: Double = _gains(grades) @ _discounts(grades.shape[1])
    return dcg


def _gains(grades: Double) -> Double:
    gains: Double = 2.0**grades - 1
    return gains


def _discounts(k: int) -> Double:
    discounts: Double = 1 / np.log2(np.arange(k) + 2)
    return discounts
