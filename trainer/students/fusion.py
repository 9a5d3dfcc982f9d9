"""Fusion: what one modality's tokens make of another's, for matching pairs and for telling what is hidden.

    x <- x + attention(norm(x) -> norm(y));  x <- x + attention(norm(x));  x <- x + mlp(norm(x))

x the reader's tokens, y those that it reads: in the manner of ALBEF's multimodal encoder (Li et al. 2021, arXiv
2107.07651), which reads after its own attention; here the tokens come from attention of their own already.
Any modality may read any other, since they share the trunk's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.ranges import Count, Positive, Share
from trainer.students.layers import Block, Pooling, attend, head_width, pool


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """`depth` blocks of the student's width."""

    depth: Count = 1
    num_heads: Count = 4
    mlp_ratio: Positive = 2.0
    dropout: Share = 0.1

    def require_width(self, width: int) -> None:
        """ValueError if the heads can't share the width."""
        head_width(width, self.num_heads)

    def build(self, width: int, pooling: Pooling) -> FusionBlocks:
        """The blocks, randomly initialised."""
        return FusionBlocks(self, width, pooling)


class FusionBlocks(nn.Module):
    """The blocks and a pooling layer behind them."""

    def __init__(self, config: Fusion, width: int, pooling: Pooling) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(config, width) for _ in range(config.depth))
        self.pool = pool(pooling, width, config.num_heads)

    def forward(self, tokens: Tensor, mask: Tensor, read: Tensor, read_mask: Tensor) -> dict[str, Tensor]:
        """Float [P, T, W], bool [P, T] and the same of the others -> "tokens", "mask" and "pooled" [P, W]."""
        for block in self.blocks:
            tokens = block(tokens, mask, read, read_mask)
        return {"tokens": tokens, "mask": mask, "pooled": self.pool(tokens, mask)}


class FusionBlock(nn.Module):
    """One block: to the others' tokens, among the own, then each on its own."""

    def __init__(self, config: Fusion, width: int) -> None:
        super().__init__()
        self.own = Block(width, config.num_heads, config.mlp_ratio, config.dropout)
        self.norm, self.read_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.num_heads, self.dropout = config.num_heads, config.dropout

    def forward(self, tokens: Tensor, mask: Tensor, read: Tensor, read_mask: Tensor) -> Tensor:
        """Float [P, T, W] -> float [P, T, W]."""
        read = self.read_norm(read)
        query = self._heads(self.query(self.norm(tokens)))
        key, value = (self._heads(part) for part in self.key_value(read).chunk(2, dim=-1))
        found = attend(query, key, value, read_mask)
        found = self.out(found.transpose(1, 2).flatten(2))
        tokens = tokens + F.dropout(found, self.dropout, self.training)
        mixed: Tensor = self.own(tokens, mask)
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # [P, H, T, W / H]
