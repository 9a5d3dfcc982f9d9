"""Layers that the students share: masked attention over tokens, pooling, and unit length.

Shapes: B batch, T tokens, W width, H heads.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Pooling = Literal["attention", "mean"]


def head_width(width: int, num_heads: int) -> int:
    """Width of one head; ValueError, which a configuration passes on, if the heads can't share it evenly."""
    if width % num_heads:
        raise ValueError(f"width {width} can't be shared evenly by {num_heads} heads")
    return width // num_heads


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """Each head's attention to what `mask`, bool [B, R], says is real, fused: float [B, H, T, W / H].

    Queries are [B, H, T, W / H], keys and values [B, H, R, W / H]. On a CPU in float32 even under autocast: torch's
    fused backward pass in bfloat16 takes several times as long there.
    """
    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), mask, causal=causal)
    keys = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=keys, is_causal=causal)


class Recomputed(nn.Module):
    """A layer that need not keep what lies inside it: with `recompute` the backward pass computes it again."""

    recompute = False

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Float [B, T, W] and bool [B, T], True for real tokens -> float [B, T, W]."""
        if self.recompute and torch.is_grad_enabled():
            mixed: Tensor = checkpoint(self.mixed, tokens, mask, use_reentrant=False)
            return mixed
        return self.mixed(tokens, mask)

    def mixed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """What the layer does."""
        raise NotImplementedError


class Block(Recomputed):
    """Pre-norm transformer block (Vaswani et al. 2017, Xiong et al. 2020).

    x <- x + attention(norm(x)); x <- x + mlp(norm(x))

    In a causal one a token sees those before it and itself; it takes no mask.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_ratio: float, dropout: float, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.causal = causal
        self.num_heads = num_heads
        self.head_width = head_width(width, num_heads)
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def mixed(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Attention between the tokens, then each on its own."""
        tokens = tokens + self._dropped(self.out(self._attended(self.attention_norm(tokens), mask)))
        return tokens + self._dropped(self.mlp(self.mlp_norm(tokens)))

    def _attended(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        num_rows, num_tokens, width = tokens.shape
        qkv = self.qkv(tokens).view(num_rows, num_tokens, 3, self.num_heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = attend(query, key, value, mask, causal=self.causal)
        return attended.transpose(1, 2).reshape(num_rows, num_tokens, width)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class AttentionPool(nn.Module):
    """Weighted mean of the tokens, each head with weights of its own.

    out_h = V_h sum_t softmax_t(q_h . x_t) x_t: a value is linear, so it is taken once, of the mean.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = head_width(width, num_heads)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, num_heads)
        self.value = nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Float [B, T, W] and bool [B, T] -> float [B, W]."""
        tokens = self.norm(tokens)
        scores = self.score(tokens)  # [B, T, H]
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], -torch.inf)
        means = scores.softmax(1).transpose(1, 2) @ tokens  # [B, H, W]
        values = self.value.weight.view(self.num_heads, self.head_width, -1)  # [H, W / H, W]
        return torch.einsum("bhw,hdw->bhd", means, values).flatten(1) + self.value.bias


class MeanPool(nn.Module):
    """Mean of the real tokens."""

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Float [B, T, W] and bool [B, T] -> float [B, W]."""
        if mask is None:
            return tokens.mean(1)
        weights = mask[..., None].to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1)


def pool(kind: Pooling, width: int, num_heads: int) -> nn.Module:
    """The pooling layer of that kind."""
    return AttentionPool(width, num_heads) if kind == "attention" else MeanPool()


def real_tokens(length: Tensor | None, num_tokens: int) -> Tensor | None:
    """Mask, bool [B, T], of the tokens before each row's `length` [B]; an empty row keeps one token."""
    if length is None:
        return None
    return torch.arange(num_tokens, device=length.device) < length.clamp(min=1)[:, None]


def unit(x: Tensor) -> Tensor:
    """Float32 [B, D] of unit length; a zero vector stays zero, and its gradient finite."""
    return F.normalize(x.float(), dim=-1, eps=1e-6)
