"""Barlow Twins: over the batch, feature i of one modality goes with feature i of the other, and with no other.

    L = sum_i (1 - C_ii)^2 + lambda sum_i sum_{j != i} C_ij^2,   C = 1/B N(h(x^v))^T N(h(x^m))  [D, D]

with N batch normalisation (to mean 0 and variance 1 over the batch, with nothing learnt; torch adds 1e-5 to the
variance) of features that are NOT scaled to unit length, and h a projector that both modalities share. Zbontar et
al. 2021 (arXiv 2103.03230), whose h has widths 8192, 8192, 8192, with batch normalisation and ReLU between; without
`head_widths` h is nothing, as in Timofeev et al., "Multi-modal retrieval with smooth weighting of negatives".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Count, NotNegative


@dataclass(frozen=True, kw_only=True)
class Barlow(ObjectiveConfig):
    """Cross-correlation towards the identity; `redundancy` is lambda."""

    kind: Literal["barlow"] = "barlow"
    redundancy: NotNegative = 0.005
    head_widths: tuple[Count, ...] = ()

    def build(self, context: Context) -> BarlowLoss:
        """The objective as a module; it owns the projector."""
        return BarlowLoss(self, context.embedding_dim)


class BarlowLoss(Loss):
    """A part for the diagonal, and one for what is beside it."""

    def __init__(self, config: Barlow, embedding_dim: int) -> None:
        super().__init__()
        self.config = config
        self.head = _projector([embedding_dim, *config.head_widths])

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Features [B, D] of the two modalities -> float32 scalars."""
        features = [forward.main[f"{modality}/features"] for modality in batch.both]
        with torch.autocast(features[0].device.type, enabled=False):
            first, second = (_normalised(self.head(x.float())) for x in features)
            correlation = first.T @ second / len(first)  # [D, D]
        itself = torch.eye(len(correlation), dtype=torch.bool, device=correlation.device)
        return {
            "invariance": (1 - correlation.diagonal()).square().sum(),
            "redundancy": self.config.redundancy * correlation.square().masked_fill(itself, 0).sum(),
        }


def _normalised(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def _projector(widths: list[int]) -> nn.Sequential:
    """Its normalisations keep nothing: it is never used but on the batch that it is trained on."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        if layers:
            layers += [nn.BatchNorm1d(inner, track_running_stats=False), nn.ReLU()]
        layers.append(nn.Linear(inner, outer, bias=False))
    return nn.Sequential(*layers)
