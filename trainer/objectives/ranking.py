"""Ranking: a pair's cosine must beat those of the anchor with other partners by a margin.

    L_Rank = 1/B sum_i sum_{j != i} max(0, margin - cos(x_i^v, x_i^m) + cos(x_i^v, x_j^m))

Aytar et al. 2017, "See, Hear, and Read" (arXiv 1706.00932). The mean over i is that of L_KD: a sum here would
drown the other's few nats. One-directional as written; `symmetric` adds the same loss with the roles of v and m
exchanged. `negatives` says how the B - 1 values over j are reduced: their sum as written, or their mean.
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
class Ranking(ObjectiveConfig):
    """Hinge on the cosines of a batch."""

    kind: Literal["ranking"] = "ranking"
    margin: NotNegative = 0.2
    symmetric: bool = False
    negatives: Literal["sum", "mean"] = "sum"

    def build(self, context: Context) -> RankingLoss:
        """The objective as a module."""
        return RankingLoss(self)


class RankingLoss(Loss):
    """One part per direction."""

    def __init__(self, config: Ranking) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        first, second = forward.embeddings()
        with torch.autocast(first.device.type, enabled=False):
            cosines = first.float() @ second.float().T  # [B, B]: anchor i with partner j
        anchor, partner = batch.pair
        parts = {f"{anchor}-to-{partner}": self._hinge(cosines)}
        if self.config.symmetric:
            parts[f"{partner}-to-{anchor}"] = self._hinge(cosines.T)
        return parts

    def _hinge(self, cosines: Tensor) -> Tensor:
        total = excesses(cosines, self.config.margin).sum(1).mean()
        return total / (len(cosines) - 1) if self.config.negatives == "mean" else total


def excesses(cosines: Tensor, margin: float) -> Tensor:
    """By how much query i's partner fails to beat gallery row j by the margin, float32 [B, B]; 0 for j = i."""
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    return (margin - cosines.diagonal()[:, None] + cosines).clamp(min=0).masked_fill(itself, 0)
