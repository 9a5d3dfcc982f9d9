"""Sum triplet: a pair's cosine must beat those of all other pairings in the batch by a margin, in both directions.

    L = 1/B sum_i [ sum_{j != i} [a - s_ii + s_ij]_+  +  sum_{j != i} [a - s_ii + s_ji]_+ ]
    s_ij = cos(x_i^v, x_j^m)

Kiros et al. 2014 (arXiv 1411.2539), as Timofeev et al., "Multi-modal retrieval with smooth weighting of negatives",
take it. They give the loss of one pair; the mean over i is ours, so that margin and learning rate mean the same for
any number of pairs. It is `ranking` with `symmetric: true`, under the name that it has there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.objectives.loss import Context, ObjectiveConfig
from trainer.objectives.ranking import Ranking, RankingLoss
from trainer.ranges import NotNegative


@dataclass(frozen=True, kw_only=True)
class TripletSum(ObjectiveConfig):
    """Hinge on the cosines of a batch; `margin` a."""

    kind: Literal["triplet_sum"] = "triplet_sum"
    margin: NotNegative = 0.2

    def build(self, context: Context) -> RankingLoss:
        """The objective as a module."""
        return RankingLoss(Ranking(margin=self.margin, symmetric=True))
