"""Image-text matching: a head tells from the fused pair whether its two belong together.

    L_itm = 1/3B [ sum_i h(x_i^v, x_i^m) + sum_i g(x_i^v, x_n(i)^m) + sum_i g(x_n'(i)^v, x_i^m) ]
    h = - log s(head(fused)),  g = - log (1 - s(head(fused))),  s the logistic function
    n(i) drawn from softmax_{j != i} cos(x_i^v, x_j^m) / t, and n'(i) likewise: hard negatives

Li et al. 2021 (ALBEF, arXiv 2107.07651, section 3.2), as CODIS (Duan et al. 2022, arXiv 2203.00048) takes it; their
two logits with cross-entropy are one logit here, which is the same. The partner's tokens read the anchor's. At the
end of a run the head scores the `top_k` nearest candidates of every query: `eval retrieval --rerank` ranks by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Batch, Forward, Side
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Count, Positive


@dataclass(frozen=True, kw_only=True)
class Itm(ObjectiveConfig):
    """Matched or not; `temperature` t of the draw, of which infinity would be even."""

    kind: Literal["itm"] = "itm"
    temperature: Positive = 0.07
    top_k: Count = 32

    def build(self, context: Context) -> ItmLoss:
        """The objective as a module; it owns the head."""
        context.require_fusion(self.kind)
        return ItmLoss(self, context.width)


class ItmLoss(Loss):
    """One part."""

    def __init__(self, config: Itm, width: int) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(width, 1)

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D], tokens [B, T, W] and masks of the two modalities -> float32 scalar."""
        anchor, partner = batch.pair
        first, second = (embedding.detach().float() for embedding in forward.embeddings())
        own = torch.arange(len(first), device=first.device)
        others = self._drawn(first @ second.T), self._drawn(second @ first.T)
        fused = forward.fused(
            Side(partner, forward.main, torch.cat([own, others[0], own])),
            Side(anchor, forward.main, torch.cat([own, own, others[1]])),
        )
        logits = self.scores(fused["pooled"])
        matched = torch.arange(len(logits), device=logits.device) < len(own)
        return {"matching": F.binary_cross_entropy_with_logits(logits, matched.float())}

    def scores(self, pooled: Tensor) -> Tensor:
        """Of P fused pairs [P, W], float32 [P]; higher is a better match."""
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.head(pooled.float())
        return logits.squeeze(-1)

    def _drawn(self, cosines: Tensor) -> Tensor:
        """For each row of [B, B] another column, int64 [B]."""
        itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        shares = (cosines / self.config.temperature).masked_fill(itself, -torch.inf).softmax(-1)
        return torch.multinomial(shares, 1).squeeze(-1)
