"""A student whose shared trunk is a transformer over either modality's tokens.

    tokens --adapter_m--> [B, T, W] --shared blocks--> [B, T, W] --shared pool--> [B, W] -> [B, D] -> logits [B, C]

Sharing all blocks between modalities follows Aytar et al. 2017 (arXiv 1706.00932) with their MLP replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainer.batch import Tokens
from trainer.ranges import Count, Positive, Share
from trainer.students.adapters import AdapterConfig, Adapters, InputShape
from trainer.students.fusion import Fusion
from trainer.students.layers import Block, Pooling, head_width, pool, unit


@dataclass(frozen=True, kw_only=True)
class TransformerStudent:
    """`depth` shared blocks of `width` W, pooled into an embedding of `embedding_dim` D.

    With `projection: none` the embedding is the pooled tokens themselves, D = W: where nothing is learnt behind
    the tokens, a projection would stay as it was drawn.
    """

    kind: Literal["transformer"] = "transformer"
    width: Count = 256
    embedding_dim: Count = 512
    depth: Annotated[int, Field(ge=0)] = 2
    num_heads: Count = 4
    mlp_ratio: Positive = 2.0
    pooling: Pooling = "attention"
    projection: Literal["linear", "none"] = "linear"
    dropout: Share = 0.1
    adapters: Mapping[str, AdapterConfig]
    fusion: Fusion | None = None

    def __post_init__(self) -> None:
        """Refuse heads that can't share the width, and an embedding of another width that nothing projects to."""
        head_width(self.width, self.num_heads)
        if self.projection == "none" and self.embedding_dim != self.width:
            raise ValueError(
                f"projection none: the embedding is the pooled tokens, {self.width} wide, and embedding_dim is "
                f"{self.embedding_dim}; make the two equal"
            )
        for part in (*self.adapters.values(), *([] if self.fusion is None else [self.fusion])):
            part.require_width(self.width)

    def build(self, shapes: Mapping[str, InputShape], num_classes: int) -> Transformer:
        """The student for these modalities, randomly initialised; without classes it has no logits."""
        return Transformer(self, shapes, num_classes)


class Transformer(nn.Module):
    """The student as a module."""

    def __init__(self, config: TransformerStudent, shapes: Mapping[str, InputShape], num_classes: int) -> None:
        super().__init__()
        self.adapters = Adapters(config.adapters, shapes, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_ratio, config.dropout) for _ in range(config.depth)
        )
        self.pool = pool(config.pooling, config.width, config.num_heads)
        self.project = (
            nn.Identity() if config.projection == "none" else nn.Linear(config.width, config.embedding_dim)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(config.embedding_dim, num_classes) if num_classes else None
        self.fusion = None if config.fusion is None else config.fusion.build(config.width, config.pooling)

    def forward(self, inputs: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """For each modality m in `inputs`, what `trainer.batch.Forward` names."""
        named: dict[str, Tensor] = {}
        for modality, tokens in inputs.items():
            x, mask = self.adapters(modality, tokens)
            for block in self.blocks:
                x = block(x, mask)
            hidden = self.project(self.dropout(self.pool(x, mask)))
            named |= {
                f"{modality}/tokens": x,
                f"{modality}/mask": x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask,
                f"{modality}/features": hidden,
                f"{modality}/embedding": unit(hidden),
            }
            if self.classify is not None:
                named[f"{modality}/logits"] = self.classify(self.dropout(F.gelu(hidden)))
        return named
