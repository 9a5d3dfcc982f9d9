"""Exact retrieval ranks, and the figures that are made of them.

    rank(positive) = 1 + #(gallery items that score above it) + #(ties that stand before it)

A score is a cosine; ties stand in ascending order of gallery id, so the order of rows never matters. A query's rank
is that of its best positive. Products are taken in float32, tile by tile; what they can't order is scored again,
exactly (see `vectors`), so that no rank depends on the shape of a tile, on BLAS, or on the machine.
"""

from contract.ranking.bootstrap import bootstrap, clusters, interval
from contract.ranking.figures import KS, per_query, random_baseline, summarise
from contract.ranking.grades import Grades, ndcg, random_ndcg
from contract.ranking.nearest import nearest
from contract.ranking.neighbours import Hits, neighbour_hits
from contract.ranking.product import Matmul, Product
from contract.ranking.ranks import EveryRank, Ranks, rank, rank_both
from contract.ranking.vectors import pair_scores

__all__ = [
    "KS",
    "EveryRank",
    "Grades",
    "Hits",
    "Matmul",
    "Product",
    "Ranks",
    "bootstrap",
    "clusters",
    "interval",
    "ndcg",
    "nearest",
    "neighbour_hits",
    "pair_scores",
    "per_query",
    "random_baseline",
    "random_ndcg",
    "rank",
    "rank_both",
    "summarise",
]
