"""Max triplet: a pair's cosine must beat that of the hardest other pairing in the batch, in both directions.

    L = 1/B sum_i [ max_{j != i} [a - s_ii + s_ij]_+  +  max_{j != i} [a - s_ii + s_ji]_+ ]
    s_ij = cos(x_i^v, x_j^m)

Faghri et al. 2017 (VSE++, arXiv 1707.05612), as Timofeev et al., "Multi-modal retrieval with smooth weighting of
negatives", take it; the mean over i is ours. From random weights the hardest negative says little, and all
embeddings may move to one point, where L = 2a. What the field does about it:

    mining: semi_hard    the hardest of those less similar than the partner, s_ij < s_ii, and where there is none
                         the least similar of all (FaceNet, Schroff et al. 2015, arXiv 1503.03832)
    anneal_steps: n      (1 - p) sum + p max with p = min(1, step / n) and the sum of `triplet_sum`; VSE-infinity
                         (Chen et al. 2021, arXiv 2011.04305) changes over at once, after its first epoch
    warm_start: RUN      of the recipe: begin with the student of a run of `triplet_sum`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.objectives.ranking import excesses
from trainer.ranges import NotNegative


@dataclass(frozen=True, kw_only=True)
class TripletMax(ObjectiveConfig):
    """Hinge on the cosines of a batch; `margin` a. With 0 `anneal_steps` it is the max from the first step."""

    kind: Literal["triplet_max"] = "triplet_max"
    margin: NotNegative = 0.2
    mining: Literal["hardest", "semi_hard"] = "hardest"
    anneal_steps: Annotated[int, Field(ge=0)] = 0

    def build(self, context: Context) -> TripletMaxLoss:
        """The objective as a module; it counts its steps."""
        return TripletMaxLoss(self)


class TripletMaxLoss(Loss):
    """One part per direction."""

    step: Tensor

    def __init__(self, config: TripletMax) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        first, second = forward.embeddings()
        with torch.autocast(first.device.type, enabled=False):
            cosines = first.float() @ second.float().T  # [B, B]: anchor i with partner j
        anchor, partner = batch.pair
        return {f"{anchor}-to-{partner}": self._hinge(cosines), f"{partner}-to-{anchor}": self._hinge(cosines.T)}

    def stepped(self, student: nn.Module) -> None:
        """Count."""
        self.step += 1

    def _hinge(self, cosines: Tensor) -> Tensor:
        found = excesses(cosines, self.config.margin)
        mined = (_semi_hard(cosines, found) if self.config.mining == "semi_hard" else found.amax(1)).mean()
        if not self.config.anneal_steps:
            return mined
        share = (self.step / self.config.anneal_steps).clamp(max=1)
        return (1 - share) * found.sum(1).mean() + share * mined


def _semi_hard(cosines: Tensor, found: Tensor) -> Tensor:
    """Of each query's excesses [B, B], that of its semi-hard negative, float32 [B]."""
    itself = torch.eye(len(found), dtype=torch.bool, device=found.device)
    farther = (cosines < cosines.diagonal()[:, None]) & ~itself
    hardest = found.masked_fill(~farther, 0).amax(1)
    return torch.where(farther.any(1), hardest, found.masked_fill(itself, torch.inf).amin(1))
