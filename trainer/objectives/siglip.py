"""SigLIP: each of the B^2 pairings of a batch is classified on its own, as one that belongs together or not.

    L = - 1/B sum_i sum_j log s( z_ij (e^t' cos(x_i^v, x_j^m) + b) ),   z_ij = 1 for i = j, else -1

with s the logistic function, t' and b learnt. Zhai et al. 2023 (arXiv 2303.15343): at the start e^t' = 10, and b is
-10 since nearly all pairings are negatives.
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
class SigLip(ObjectiveConfig):
    """Pairwise logistic loss; `scale` e^t' and `bias` b are those at the start."""

    kind: Literal["siglip"] = "siglip"
    scale: Positive = 10.0
    bias: float = -10.0
    learnable: bool = True

    def build(self, context: Context) -> SigLipLoss:
        """The objective as a module; it owns scale and bias."""
        return SigLipLoss(self)


class SigLipLoss(Loss):
    """A part for the pairs, and one for the other pairings."""

    def __init__(self, config: SigLip) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)), requires_grad=config.learnable)
        self.bias = nn.Parameter(torch.tensor(config.bias), requires_grad=config.learnable)

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        first, second = forward.embeddings()
        with torch.autocast(first.device.type, enabled=False):
            logits = self.log_scale.exp() * (first.float() @ second.float().T) + self.bias  # [B, B]
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        return {
            "matched": F.softplus(-logits.diagonal()).mean(),
            "mismatched": F.softplus(logits).masked_fill(itself, 0).sum(1).mean(),
        }
