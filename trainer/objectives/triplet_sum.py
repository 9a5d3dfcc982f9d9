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

import torch
from torch import Tensor

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import NotNegative


@dataclass(frozen=True, kw_only=True)
class TripletSum(ObjectiveConfig):
    """Hinge on the cosines of a batch; `margin` a."""

    kind: Literal["triplet_sum"] = "triplet_sum"
    margin: NotNegative = 0.2

    def build(self, context: Context) -> TripletSumLoss:
        """The objective as a module."""
        return TripletSumLoss(self)


class TripletSumLoss(Loss):
    """One part per direction."""

    def __init__(self, config: TripletSum) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        first, second = forward.embeddings()
        with torch.autocast(first.device.type, enabled=False):
            cosines = first.float() @ second.float().T  # [B, B]: anchor i with partner j
        anchor, partner = batch.pair
        return {
            f"{anchor}-to-{partner}": excesses(cosines, self.config.margin).sum(1).mean(),
            f"{partner}-to-{anchor}": excesses(cosines.T, self.config.margin).sum(1).mean(),
        }


def excesses(cosines: Tensor, margin: float) -> Tensor:
    """By how much query i's partner fails to beat gallery row j by the margin, float32 [B, B]; 0 for j = i."""
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return (margin - cosines.diagonal()[:, None] + cosines).clamp(min=0).masked_fill(itself, 0)
