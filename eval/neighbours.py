"""Zero-shot classification by nearest neighbours: a memory bank of labelled items, queries of another split.

What `any` and `vote` are, `contract.ranking.neighbours` says. Chance is a bank in random order: for `any`, that one
of k drawn items has the label; for `vote`, that the first one has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contract.errors import ConfigError
from contract.ranking import Hits, neighbour_hits
from eval import labelled
from eval.labelled import Labelled, Source

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Double = npt.NDArray[np.float64]

KS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Percentages of right answers with `k` neighbours, and what chance gives."""

    k: int
    any: float
    chance_any: float
    vote: float
    chance_vote: float


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """One class: its label, its queries, its items in the bank, and a `Share` for each k."""

    label: int
    num_queries: int
    num_bank: int
    shares: tuple[Share, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One source's figures, queries of one split among the bank of another: `shares` for each k, and by class."""

    source: Source
    bank: Labelled
    queries: Labelled
    shares: tuple[Share, ...]
    classes: tuple[ClassShare, ...]


def evaluate(
    sources: Sequence[Source], *, bank: str, queries: str, ks: Sequence[int], say: Callable[[str], None]
) -> list[Measured]:
    """Measure each source with `bank` as the memory and `queries` asking it, and the other way round."""
    if bank == queries:
        raise ConfigError(f"--bank and --queries are both {bank!r}: every item would be its own nearest neighbour")
    found = []
    for source in sources:
        splits = {name: labelled.load(source, name) for name in (bank, queries)}
        for items in splits.values():
            labelled.require_classes(source, items)
        for memory, asking in ((bank, queries), (queries, bank)):
            counts = f"{len(splits[asking].ids):,} queries ({asking}) among {len(splits[memory].ids):,} ({memory})"
            say(f"{source.name}: {counts}")
            found.append(_measure(source, splits[memory], splits[asking], ks))
    return found


def chance_of_any(num_bank: int, num_of_class: Rows, k: int) -> Double:
    """That one of k items drawn from the bank is one of its `num_of_class` int64 [q] of the label, float64 [q].

    1 - C(n - c, k) / C(n, k), as a product.
    """
    drawn = np.arange(k)
    misses = np.clip(num_bank - num_of_class[:, None] - drawn, 0, None) / (num_bank - drawn)
    chance: Double = 1.0 - misses.prod(axis=1)
    return chance


def _measure(source: Source, bank: Labelled, queries: Labelled, ks: Sequence[int]) -> Measured:
    if max(ks) > len(bank.ids):
        raise ConfigError(
            f"--k {max(ks)}: the memory bank, split {bank.split} of {source.store.path}, has {len(bank.ids):,} "
            f"labelled {source.modality} items"
        )
    hits = neighbour_hits(queries.vectors, queries.labels, bank.vectors, bank.labels, bank.ids, ks)
    every = np.ones(len(queries.ids), dtype=bool)
    return Measured(
        source=source,
        bank=bank,
        queries=queries,
        shares=_shares(hits, bank, queries, every),
        classes=tuple(
            ClassShare(
                label=int(label),
                num_queries=int((queries.labels == label).sum()),
                num_bank=int((bank.labels == label).sum()),
                shares=_shares(hits, bank, queries, queries.labels == label),
            )
            for label in np.unique(queries.labels)
        ),
    )


def _shares(hits: Sequence[Hits], bank: Labelled, queries: Labelled, asking: Mask) -> tuple[Share, ...]:
    """The figures of those queries that are `asking`, bool [q]."""
    labels, counts = np.unique(queries.labels[asking], return_counts=True)
    of_class = np.array([(bank.labels == label).sum() for label in labels])

    def chance(k: int) -> float:
        return 100.0 * float(np.average(chance_of_any(len(bank.ids), of_class, k), weights=counts))

    return tuple(
        Share(
            k=found.k,
            any=100.0 * float(found.any[asking].mean()),
            chance_any=chance(found.k),
            vote=100.0 * float(found.vote[asking].mean()),
            chance_vote=chance(1),
        )
        for found in hits
    )
