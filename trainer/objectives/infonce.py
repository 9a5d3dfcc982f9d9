"""InfoNCE: each member of a pair must be picked out among the batch, in both directions.

    L = 1/2B sum_i [ - log softmax_j( s cos(x_i^v, x_j^m) )_i  - log softmax_j( s cos(x_j^v, x_i^m) )_i ]

with a learnable scale s = min(exp(log_scale), max_scale). van den Oord et al. 2018 (arXiv 1807.03748); the
scale and its limit are those of CLIP, Radford et al. 2021 (arXiv 2103.00020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Positive


@dataclass(frozen=True, kw_only=True)
class InfoNce(ObjectiveConfig):
    """Symmetric contrastive cross-entropy; `scale` is 1 / temperature at the start."""

    kind: Literal["infonce"] = "infonce"
    scale: Positive = 14.3
    max_scale: Positive = 100.0
    learnable: bool = True

    def build(self, context: Context) -> InfoNceLoss:
        """The objective as a module; it owns the scale."""
        return InfoNceLoss(self)


class InfoNceLoss(Loss):
    """One part per direction."""

    def __init__(self, config: InfoNce) -> None:
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)), requires_grad=config.learnable)

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        first, second = forward.embeddings()
        with torch.autocast(first.device.type, enabled=False):
            scores = self.scale() * (first.float() @ second.float().T)  # [B, B]
            own = torch.arange(len(scores), device=scores.device)
            anchor, partner = batch.pair
            return {
                f"{anchor}-to-{partner}": F.cross_entropy(scores, own) / 2,
                f"{partner}-to-{anchor}": F.cross_entropy(scores.T, own) / 2,
            }

    def scale(self) -> Tensor:
        """The factor on the cosines, float32 scalar."""
        # Clamped in place, as CLIP does: a clamp inside the graph has no gradient above the limit, for good.
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.config.max_scale))
        return self.log_scale.exp()
