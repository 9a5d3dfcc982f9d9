"""The re-ranked figures' own part of a report, beside those of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract.ranking import KS
from eval.rerank import Reranked
from eval.tables import Table

EXPLANATION = (
    "by scores: the k nearest by embedding are put in the order of a cross-encoder's scores, the others stay "
    "behind them as they were; reachable: queries, in percent, with a positive among their k."
)


def table(
    found: Mapping[str, Reranked], embedded: Mapping[str, Mapping[str, float | int]], ks: Sequence[int] = KS
) -> Table:
    """Two rows for each direction: by embedding, whose figures are given, and by score."""
    names = [*(f"R@{k}" for k in ks), "mean_rank", "median_rank"]
    rows = []
    for way, reranked in found.items():
        own, by_score = embedded[way], reranked.figures(ks)
        rows.append((way, "embedding", *(f"{own[name]:,.1f}" for name in names), ""))
        figures = (f"{by_score[name]:,.1f}" for name in names)
        rows.append((way, f"scores of {reranked.k}", *figures, f"{reranked.reachable:.1f}"))
    columns = ("direction", "order", *(name.replace("_", " ") for name in names), "reachable")
    return Table(columns=columns, rows=tuple(rows), num_names=2)


def as_tree(found: Mapping[str, Reranked], ks: Sequence[int] = KS) -> dict[str, Any]:
    """The re-ranked directions as dicts and scalars."""
    return {way: {"k": one.k, "reachable": one.reachable} | one.figures(ks) for way, one in found.items()}
