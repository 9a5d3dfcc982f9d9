"""Knowledge distillation: the teacher's soft targets of the anchor, for all members of each pair.

    L_KD = 1/M sum_m  T^2 / B sum_i  KL( softmax(g_i / T) || softmax(f_m(x_i^m) / T) )

with M modalities in a batch (2, or 1 of a stream of one), KL summed over classes, g the stored logits of the anchor
(the image), f_m the student's logits. Aytar et al. 2017, "See, Hear, and Read" (arXiv 1706.00932), where T = 1; the
factor T^2 keeps the gradient's size (Hinton et al. 2015, arXiv 1503.02531).

A target that a store keeps as the k most probable classes and the others' mass (contract/encodings/topk.py) is read
as the distribution in which the others share that mass evenly, and T acts on this one: p^(1/T), renormalised. At
T = 1 the k classes and the others' mass are the teacher's own. At T > 1 the others get more than the teacher gives
them (an even share is the one that flattening raises most): with 8 of 48 classes and T = 4, 52% where it gave them
45%. So a high temperature wants a large k, or dense logits. The student's other classes are drawn to even shares
too; a comparison of k + 1 events would leave those open, but has no T > 1.
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
class KdKl(ObjectiveConfig):
    """KL divergence from the teacher's class distribution; `target` names an entry of the recipe's targets."""

    kind: Literal["kd_kl"] = "kd_kl"
    target: str = "logits"
    temperature: Positive = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        """The targets that must be in every stream."""
        return (self.target,)

    @property
    def classes(self) -> tuple[str, ...]:
        """The student's logits are of the target's classes."""
        return (self.target,)

    def build(self, context: Context) -> KdKlLoss:
        """The objective as a module."""
        return KdKlLoss(self)


class KdKlLoss(Loss):
    """One part per modality; they add up to L_KD."""

    def __init__(self, config: KdKl) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Targets float [B, C] and the student's logits [B, C] -> float32 scalars."""
        teacher = self._log_probabilities(batch.targets[self.config.target]).detach()
        scale = self.config.temperature**2 / len(batch.pair)
        parts = {}
        for modality in batch.pair:
            student = self._log_probabilities(forward.main[f"{modality}/logits"])
            divergence = (teacher.exp() * (teacher - student)).sum(-1)
            parts[modality] = scale * divergence.mean()
        return parts

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return (logits.float() / self.config.temperature).log_softmax(-1)
