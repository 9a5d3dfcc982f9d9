"""Contrast of one modality with a queue: a query must pick its own key, and those like it, out of older ones.

    1/B sum_i -1/|P_i| sum_{p in P_i} log( e^{q_i . k_p / t} / sum_j e^{q_i . k_j / t} )

k_0 the own key, which is always in P_i, k_1 .. k_Q those in the queue, in P_i where their tags are like its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.objectives.momentum import MomentumHead
from trainer.objectives.queue import Queue


class Contrast(nn.Module):
    """The head to D' values and its copy, the queue of keys [Q, D'] and that of their tags [Q, G]."""

    def __init__(self, width: int, head_dim: int, num_tags: int, queue_size: int, momentum: float) -> None:
        super().__init__()
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, head_dim))
        self.head = MomentumHead(head, momentum)
        self.keys = Queue.of_units(queue_size, head_dim)
        self.tags = Queue(torch.zeros(queue_size, num_tags))

    def forward(self, features: Tensor, others: Tensor, tags: Tensor, temperature: float, epsilon: float) -> Tensor:
        """Features of the views and of the others, float [B, D], and tags [B, G] -> float32 scalar."""
        with torch.autocast(features.device.type, enabled=False):
            query, key = self.head.query(features), self.head.key(others)
            scores = torch.cat([(query * key).sum(-1, keepdim=True), query @ self.keys.rows.T], dim=1)
            alike = F.pad(tags @ self.tags.rows.T > epsilon, (1, 0), value=True)  # [B, 1 + Q]
            shares = (scores / temperature).log_softmax(-1)
            loss = -((shares * alike).sum(-1) / alike.sum(-1)).mean()
        self.keys.note(key)
        self.tags.note(tags)
        return loss

    def stepped(self) -> None:
        """Move the head's copy, and write what was noted."""
        self.head.follow()
        self.keys.write()
        self.tags.write()
