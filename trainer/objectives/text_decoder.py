"""A small text decoder: a causal transformer that reads some vectors, then a caption, and says each next word.

    [e_1 .. e_K, begin, w_1 .. w_L] --causal blocks--> [.., h_0 .. h_L] --head--> words w_1 .. w_L, end

Words come in as rows of a frozen table, and so do the vectors before them, or as mixtures of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.ranges import Count, Positive, Share
from trainer.students.layers import Block, head_width

NOT_TOLD = -100


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """`depth` blocks of `width`."""

    width: Count = 256
    depth: Count = 2
    num_heads: Count = 4
    mlp_ratio: Positive = 2.0
    dropout: Share = 0.1

    def __post_init__(self) -> None:
        """Refuse heads that can't share the width."""
        head_width(self.width, self.num_heads)

    def build(self, table: Tensor, max_words: int) -> TextDecoder:
        """The decoder of captions of at most so many words, over the words' vectors float32 [V, E]."""
        return TextDecoder(self, table, max_words)


class TextDecoder(nn.Module):
    """The decoder as a module; word V of V is the end of a caption."""

    table: Tensor

    def __init__(self, config: Decoder, table: Tensor, max_words: int) -> None:
        super().__init__()
        self.max_words = max_words
        self.end = len(table)
        # Encoders' scales differ by orders of magnitude; weights that add up to 1 mix either table alike.
        table = table - table.mean(0)
        self.register_buffer("table", table / table.square().mean().sqrt().clamp(min=1e-6))
        self.read = nn.Linear(table.shape[1], config.width)
        self.begin = nn.Parameter(torch.randn(1, config.width) / 50)
        self.positions = nn.Parameter(torch.randn(max_words + 1, config.width) / 50)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.mlp_ratio, config.dropout, causal=True)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, len(table) + 1)

    def forward(self, before: Tensor, words: Tensor) -> Tensor:
        """Float [B, K, W] and int64 [B, L], any id past a caption's end -> logits float32 [B, L + 1, V + 1]."""
        logits: Tensor = self.head(self._states(before, words))
        return logits.float()

    def _states(self, before: Tensor, words: Tensor) -> Tensor:
        """Of the same, what the head reads, float [B, L + 1, W]."""
        num_rows, length = words.shape
        vectors = self.read(self.table[words.clamp(0, self.end - 1)])  # [B, L, W]
        begin = self.begin.expand(num_rows, 1, -1).to(vectors.dtype)
        said = torch.cat([begin, vectors], dim=1) + self.positions[: length + 1]
        x = torch.cat([before.to(said.dtype), said], dim=1)
        for block in self.blocks:
            x = block(x, None)
        states: Tensor = self.norm(x[:, -(length + 1) :])
        return states

    def loss(self, before: Tensor, words: Tensor, told: Tensor) -> Tensor:
        """Cross-entropy per word of captions int64 [B, L], -1 past the end, and of their ends, float32 scalar.

        Words that are not `told`, bool [V], are read but not counted.
        """
        is_word = words >= 0
        longest = int(is_word.sum(1).max())
        words, is_word = words[:, :longest], is_word[:, :longest]
        targets = words.where(is_word & told[words.clamp(min=0)], NOT_TOLD)
        targets = F.pad(targets, (0, 1), value=NOT_TOLD).scatter(1, is_word.sum(1, keepdim=True), self.end)
        # The vocabulary is what costs: most places are behind a caption's end.
        is_target = targets != NOT_TOLD
        logits = self.head(self._states(before, words)[is_target])
        return F.cross_entropy(logits.float(), targets[is_target])
