"""Queries of a direction with their exact neighbours, and how an index does on them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from eval import exact
from eval.gallery import Gallery
from eval.vectors import Embeddings, Vectors

SEED = 0
# Queries to tune on, and as many others to measure on: enough for 3 decimals of 10-recall@10.
NUM_QUERIES = 1000
# Two float32 products of the same unit vectors differ by less.
ROUNDING = 1e-6
# A clock's steps, and the first search's warming up, are small beside it.
LEAST_TIME_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Recalls:
    """Shares of queries whose nearest is found first, or among k, and the share of the k nearest that are found."""

    k: int
    first_at_1: float
    first_at_k: float
    all_at_k: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Queries, float32 [q, d], of which each has `k` nearest in a gallery of items `ids`, str [n]."""

    queries: Embeddings
    gallery: Vectors
    ids: npt.NDArray[np.str_]
    k: int

    @cached_property
    def best(self) -> npt.NDArray[np.float64]:
        """The cosines of the exact nearest, float64 [q, k]; the whole gallery is read for them, once."""
        nearest = exact.nearest(self.queries, self.gallery, self.ids, self.k)
        return exact.scores(self.queries, self.gallery, nearest)

    def recalls(self, index: Gallery) -> Recalls:
        """What an index finds of the exact neighbours; whatever ties with one is as good."""
        found = exact.scores(self.queries, self.gallery, index.search(self.queries, self.k))
        nearest, last = self.best[:, :1] - ROUNDING, self.best[:, -1:] - ROUNDING
        return Recalls(
            k=self.k,
            first_at_1=float((found[:, :1] >= nearest).mean()),
            first_at_k=float((found >= nearest).any(axis=1).mean()),
            all_at_k=float((found >= last).mean()),
        )

    def queries_per_second(self, index: Gallery, at_once: int) -> float:
        """How many queries an index answers in a second when it gets so many of them at once."""
        batches = np.array_split(self.queries, -(-len(self.queries) // at_once))
        index.search(batches[0], self.k)
        num_queries, start = 0, time.perf_counter()
        while True:
            for batch in batches:
                index.search(batch, self.k)
                num_queries += len(batch)
                elapsed_s = time.perf_counter() - start
                if elapsed_s > LEAST_TIME_S:
                    return num_queries / elapsed_s


def samples(queries: Vectors, gallery: Vectors, ids: npt.NDArray[np.str_], k: int) -> tuple[Sample, Sample]:
    """Queries to tune an index on and others to measure it on, the same where there is but one.

    `ids` str [n] are the gallery's; `k` is less in a gallery of fewer items.
    """
    order = np.random.default_rng(SEED).permutation(queries.num_rows)
    half = min(NUM_QUERIES, len(order) // 2)
    tuned, measured = (
        Sample(queries=queries.read(np.sort(rows)), gallery=gallery, ids=ids, k=min(k, gallery.num_rows))
        for rows in ((order[:half], order[half : half + NUM_QUERIES]) if half else (order, order))
    )
    return tuned, measured
