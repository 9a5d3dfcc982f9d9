"""SHRe's student: an adapter per modality, then ONE shared two-layer MLP (Aytar et al. 2017, arXiv 1706.00932).

    tokens --adapter_m--> [B, T, W] --pool_m--> [B, W] --shared--> hidden [B, D] --shared--> logits [B, C]

The hidden layer, scaled to unit length, is the embedding; the output are the teacher's classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Tokens
from trainer.ranges import Count, Share
from trainer.students.adapters import AdapterConfig, Adapters, InputShape
from trainer.students.fusion import Fusion
from trainer.students.layers import Pooling, head_width, pool, unit


@dataclass(frozen=True, kw_only=True)
class MlpStudent:
    """`width` W of the adapters' tokens, `embedding_dim` D of the shared hidden layer."""

    kind: Literal["mlp"] = "mlp"
    width: Count = 256
    embedding_dim: Count = 512
    num_heads: Count = 4
    pooling: Pooling = "attention"
    dropout: Share = 0.1
    adapters: Mapping[str, AdapterConfig]
    fusion: Fusion | None = None

    def __post_init__(self) -> None:
        """Refuse heads that can't share the width."""
        head_width(self.width, self.num_heads)
        for part in (*self.adapters.values(), *([] if self.fusion is None else [self.fusion])):
            part.require_width(self.width)

    def build(self, shapes: Mapping[str, InputShape], num_classes: int) -> Mlp:
        """The student for these modalities, randomly initialised; without classes it has no logits."""
        return Mlp(self, shapes, num_classes)


class Mlp(nn.Module):
    """The student as a module."""

    def __init__(self, config: MlpStudent, shapes: Mapping[str, InputShape], num_classes: int) -> None:
        super().__init__()
        self.adapters = Adapters(config.adapters, shapes, config.width)
        self.pools = nn.ModuleDict({m: pool(config.pooling, config.width, config.num_heads) for m in shapes})
        self.hidden = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.embedding_dim))
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(config.embedding_dim, num_classes) if num_classes else None
        self.fusion = None if config.fusion is None else config.fusion.build(config.width, config.pooling)

    def forward(self, inputs: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """For each modality m in `inputs`, what `trainer.batch.Forward` names."""
        named: dict[str, Tensor] = {}
        for modality, tokens in inputs.items():
            x, mask = self.adapters(modality, tokens)
            hidden = self.hidden(self.dropout(self.pools[modality](x, mask)))
            named |= {
                f"{modality}/tokens": x,
                f"{modality}/mask": x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask,
                f"{modality}/features": hidden,
                f"{modality}/embedding": unit(hidden),
            }
            if self.classify is not None:
                named[f"{modality}/logits"] = self.classify(self.dropout(F.gelu(hidden)))
        return named
