"""Which tokens are hidden from the student, for objectives that have it tell them."""

from __future__ import annotations

import torch
from torch import Tensor


def hidden(allowed: Tensor, share: float) -> Tensor:
    """Bool [B, T]: of each row's allowed tokens, bool [B, T], `share` at random, at least one if there is any."""
    order = torch.rand(allowed.shape, device=allowed.device).masked_fill(~allowed, 2.0)
    counts = allowed.sum(1, keepdim=True)
    wanted = (counts * share).round().clamp(min=1)
    return (order.argsort(1).argsort(1) < wanted) & allowed
