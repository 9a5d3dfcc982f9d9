"""Momentum contrast within each modality: an item's other view must be picked out among older items.

    L = sum_m 1/B sum_i -1/|P_i| sum_{p in P_i} log( e^{q_i . k_p / t} / sum_j e^{q_i . k_j / t} )

q_i a head's vector of what the student makes of an item, k those of their momentum copies: of its other view
(another stored view, another caption), its own key, then the queue (`contrast.py`). P_i is the own key (InfoNCE),
and with `tags`, for the anchor, also each key whose tag vector t_p (`tags.py`), kept in a queue beside it, is like
its own: t_p . t_i > epsilon. Yuan et al. 2021 (Multimodal Contrastive Training, arXiv 2104.12836), after He et al.
2020 (MoCo, arXiv 1911.05722). As there, the keys of the rest of the batch are not among those to choose from, and
captions have no tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.contrast import Contrast
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.objectives.tags import TagKind, Tags
from trainer.ranges import Count, Positive, Share


@dataclass(frozen=True, kw_only=True)
class Moco(ObjectiveConfig):
    """`momentum` of the copies, `queue_size` of each modality's queue, `head_dim` of the heads.

    `target` names an entry of the recipe's targets; `tags: target` alone reads it.
    """

    kind: Literal["moco"] = "moco"
    temperature: Positive = 0.07
    momentum: Share = 0.995
    queue_size: Count = 1024
    head_dim: Count = 128
    tags: TagKind | None = None
    target: str = "logits"
    epsilon: Share = 0.5

    @property
    def needs(self) -> tuple[str, ...]:
        """The targets that must be in every stream."""
        return (self.target,) if self.tags == "target" else ()

    @property
    def reads_others(self) -> bool:
        """A key is of another view."""
        return True

    def build(self, context: Context) -> MocoLoss:
        """The objective as a module; it owns the heads and the queues."""
        return MocoLoss(self, context)


class MocoLoss(Loss):
    """One part per modality."""

    def __init__(self, config: Moco, context: Context) -> None:
        super().__init__()
        self.config = config
        self.copy = context.student_copy(config.momentum)
        self.tags = Tags(config.tags, config.target, context)
        width = context.embedding_dim
        self.contrasts = nn.ModuleDict(
            {
                m: Contrast(width, config.head_dim, self.tags.num, config.queue_size, config.momentum)
                for m in context.modalities
            }
        )

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Features [B, D] of the modalities, and its copy's of the others -> float32 scalars."""
        students, teachers = forward.main, self.copy.passed(forward, other=True)
        tags = self.tags(batch)
        parts = {}
        for modality in batch.pair:
            name = f"{modality}/features"
            parts[modality] = self.contrasts[modality](
                students[name], teachers[name], tags, self.config.temperature, self.config.epsilon
            )
            tags = torch.zeros_like(tags)  # they are the anchor's
        return parts

    def stepped(self, student: nn.Module) -> None:
        """Move the copies, and write the step's keys."""
        self.copy.follow(student)
        for contrast in self.contrasts.values():
            assert isinstance(contrast, Contrast)
            contrast.stepped()
