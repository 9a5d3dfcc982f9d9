"""SimCLR-smooth: the max triplet made smooth; a pair's score stands against all others, and not against itself.

    L = 1/B sum_i [ - log( e^{s_ii/t} / sum_{j != i} e^{s_ij/t} )  -  log( e^{s_ii/t} / sum_{j != i} e^{s_ji/t} ) ]
    s_ij = cos(x_i^v, x_j^m)

Timofeev et al., "Multi-modal retrieval with smooth weighting of negatives", after SimCLR (Chen et al. 2020, arXiv
2002.05709); the mean over i is ours. The positive is NOT in the denominator: L may be negative, 2 log(B - 1) - 4/t
at the least, and pairs that are right already still pull (Yeh et al. 2021, arXiv 2110.06848, find that better for
small batches). With it there, L halved and t learnt, this is `infonce`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Positive


@dataclass(frozen=True, kw_only=True)
class SimClrSmooth(ObjectiveConfig):
    """Contrast with the other pairings alone; `temperature` t."""

    kind: Literal["simclr_smooth"] = "simclr_smooth"
    temperature: Positive = 0.07

    def build(self, context: Context) -> SimClrSmoothLoss:
        """The objective as a module."""
        return SimClrSmoothLoss(self)


class SimClrSmoothLoss(Loss):
    """One part per direction."""

    def __init__(self, config: SimClrSmooth) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        first, second = forward.embeddings()
        with torch.autocast(first.device.type, enabled=False):
            scores = first.float() @ second.float().T / self.config.temperature  # [B, B]
        anchor, partner = batch.pair
        return {f"{anchor}-to-{partner}": _smoothed(scores), f"{partner}-to-{anchor}": _smoothed(scores.T)}


def _smoothed(scores: Tensor) -> Tensor:
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return (scores.masked_fill(itself, -torch.inf).logsumexp(1) - scores.diagonal()).mean()
