"""Margin between modalities: an item's query must be nearer to its partner's key than to older ones, both ways.

    L = sum over (x, y) of (v, m), (m, v)  1/B sum_i sum_j [ a - q_i^x . k_i^y + q_i^x . k_j^y ]_+

q the head's vector of what the student makes of an item, k those of their momentum copies, of another view as in
`moco`: k_i the partner's own, k_j those in the queue, whose sum over j is taken as written, or their mean. Yuan et
al. 2021 (Multimodal Contrastive Training, arXiv 2104.12836): a head of its own for what lies between modalities
does better than one that serves within them too.

Deviation: there each tower has a head of two layers, and the image tower or the heads' outputs are used afterwards.
Here retrieval compares what lies before the head, and heads of their own would leave that unaligned (R@1 at chance
on scenes). So one linear head W serves both modalities. What is trained is the cosine under W^T W, what is compared
the cosine itself: near it while W is near the rotation that it begins as, and the same with `head_dim: null`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.objectives.momentum import MomentumHead
from trainer.objectives.queue import Queue
from trainer.ranges import Count, NotNegative, Share


@dataclass(frozen=True, kw_only=True)
class InterMargin(ObjectiveConfig):
    """`margin` a; `momentum` of the copies, `queue_size` of each modality's queue, `head_dim` of the head."""

    kind: Literal["inter_margin"] = "inter_margin"
    margin: NotNegative = 0.2
    negatives: Literal["sum", "mean"] = "sum"
    momentum: Share = 0.995
    queue_size: Count = 1024
    head_dim: Count | None = 1024  # null: no head

    @property
    def reads_others(self) -> bool:
        """A key is of another view."""
        return True

    def build(self, context: Context) -> InterMarginLoss:
        """The objective as a module; it owns the head and the queues."""
        return InterMarginLoss(self, context)


class InterMarginLoss(Loss):
    """One part per direction."""

    def __init__(self, config: InterMargin, context: Context) -> None:
        super().__init__()
        self.config = config
        self.copy = context.student_copy(config.momentum)
        self.head = MomentumHead(_rotation(context.embedding_dim, config.head_dim), config.momentum)
        width = config.head_dim or context.embedding_dim
        self.keys = nn.ModuleDict({m: Queue.of_units(config.queue_size, width) for m in context.modalities})

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Features [B, D] of the modalities, and the copy's of the others -> float32 scalars."""
        students, teachers = forward.main, self.copy.passed(forward, other=True)
        anchor, partner = batch.both
        return {
            f"{source}-to-{target}": self._excess(
                target, students[f"{source}/features"], teachers[f"{target}/features"]
            )
            for source, target in ((anchor, partner), (partner, anchor))
        }

    def stepped(self, student: nn.Module) -> None:
        """Move the copies, and write the step's keys."""
        self.copy.follow(student)
        self.head.follow()
        for modality in self.keys:
            self._queue(modality).write()

    def _excess(self, target: str, features: Tensor, others: Tensor) -> Tensor:
        """Of queries, and of their partners of the modality `target`, float [B, D] each."""
        queue = self._queue(target)
        with torch.autocast(features.device.type, enabled=False):
            query, key = self.head.query(features), self.head.key(others)
            own = (query * key).sum(-1, keepdim=True)
            excess = (self.config.margin - own + query @ queue.rows.T).clamp(min=0)  # [B, Q]
        queue.note(key)
        return (excess.sum(1) if self.config.negatives == "sum" else excess.mean(1)).mean()

    def _queue(self, modality: str) -> Queue:
        queue = self.keys[modality]
        assert isinstance(queue, Queue)
        return queue


def _rotation(inner: int, outer: int | None) -> nn.Module:
    """A linear layer that keeps all angles at first, as far as it has room; None: nothing."""
    if outer is None:
        return nn.Identity()
    layer = nn.Linear(inner, outer, bias=False)
    nn.init.orthogonal_(layer.weight)
    return layer
