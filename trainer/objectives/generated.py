"""Generated-vs-real contrast: what the student makes of a sentence must be told to be of that sentence's image.

    L = 1/2B sum_i [ - log softmax_j( cos(h(z_i), y_j) / t )_i  - log softmax_j( cos(h(z_j), y_i) / t )_i ]

z_i the student's features of the sentence, h a head to the width of the teacher's features, so that h(z_i) is what
is generated of them; y_i the stored features of the paired image, which are real and have no gradient. Zhang et al.
2021 (XMC-GAN, arXiv 2101.04702), with both directions as in its other pairs.

Deviation: the paper generates pixels and compares features of generated and real images by its discriminator. Here
what is generated are the features. Where a batch has no sentence, or nothing that it is paired with, there is no
part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Positive
from trainer.students.layers import unit


@dataclass(frozen=True, kw_only=True)
class Generated(ObjectiveConfig):
    """`target` is generated from `reads`; it is an entry of the recipe's targets, one vector of an item."""

    kind: Literal["generated"] = "generated"
    target: str = "features"
    reads: str = "text"
    temperature: Positive = 0.1

    @property
    def needs(self) -> tuple[str, ...]:
        """What is real."""
        return (self.target,)

    def build(self, context: Context) -> GeneratedLoss:
        """The objective as a module; it owns the heads."""
        shapes = {
            modality: targets[self.target]
            for modality, targets in context.anchor_targets.items()
            if modality != self.reads and self.target in targets
        }
        for modality, shape in shapes.items():
            if len(shape) != 1:
                raise ConfigError(
                    f"objective {self.kind}: target {self.target} of {modality} is of shape {list(shape)}; take "
                    "one with a vector for each item, such as features"
                )
        return GeneratedLoss(self, context.embedding_dim, {m: shape[0] for m, shape in shapes.items()})


class GeneratedLoss(Loss):
    """One part per direction; a head for each modality of what is real, as teachers differ."""

    def __init__(self, config: Generated, width: int, widths: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.heads = nn.ModuleDict(
            {
                modality: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, real_width))
                for modality, real_width in widths.items()
            }
        )

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Features [B, D] of the sentences and targets [B, D'] of their anchors -> float32 scalars."""
        modality = batch.pair[0]
        if self.config.reads not in batch.pair[1:]:
            return {}
        features = forward.main[f"{self.config.reads}/features"]
        with torch.autocast(features.device.type, enabled=False):
            generated = unit(self.heads[modality](features.float()))
            real = unit(batch.targets[self.config.target].detach())
            scores = generated @ real.T / self.config.temperature  # [B, B]
            own = torch.arange(len(scores), device=scores.device)
            return {
                "generated-to-real": F.cross_entropy(scores, own) / 2,
                "real-to-generated": F.cross_entropy(scores.T, own) / 2,
            }
