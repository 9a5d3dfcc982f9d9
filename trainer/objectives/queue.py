"""Queues: the newest keys of earlier batches, which a batch's queries are held against (MoCo, arXiv 1911.05722).

What a batch says is noted, and written after the step: all batches of a step meet the same queue, and a step that
fails leaves it alone. As in the papers, an item's own key of an earlier epoch is one of the others while it is
there: a queue is to be much shorter than the set.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The newest rows that were written, float32 [size, D]; at first those that are given."""

    rows: Tensor
    place: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._noted: list[Tensor] = []

    @staticmethod
    def of_units(size: int, dim: int) -> Queue:
        """A queue of unit vectors, random at first."""
        return Queue(F.normalize(torch.randn(size, dim), dim=-1))

    def note(self, rows: Tensor) -> None:
        """Float [B, D] of a batch."""
        self._noted.append(rows.detach().float())

    @torch.no_grad()
    def write(self) -> None:
        """Put all that was noted in the places of the oldest; of more than the queue holds, the last."""
        for noted in self._noted:
            newest = noted[-len(self.rows) :]
            places = (self.place + torch.arange(len(newest), device=newest.device)) % len(self.rows)
            self.rows[places] = newest
            self.place.copy_((self.place + len(newest)) % len(self.rows))
        self._noted.clear()
