"""What momentum contrast keeps (MoCo, He et al. 2020, arXiv 1911.05722): slow copies, queues of what they said."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Forward, Passed


class MomentumCopy(nn.Module):
    """A copy w of a module v that follows it: w <- m w + (1 - m) v after each step; it has no gradient.

    It draws dropout of its own, as the module does in training.
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.module = deepcopy(module).requires_grad_(requires_grad=False)

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """Take a step towards the module, its parameters and its buffers of floating point; copy the others."""
        for slow, fast in zip(_tensors(self.module), _tensors(module), strict=True):
            if slow.is_floating_point():
                slow.lerp_(fast, 1 - self.momentum)
            else:
                slow.copy_(fast)

    @torch.no_grad()
    def passed(self, forward: Forward, *, other: bool = False) -> Passed:
        """Of a copy of the student: its outputs for the batch, or for what else it shows."""
        return forward.of(self.module, other=other)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Of a copy of a head: its outputs."""
        found: Tensor = self.module(x)
        return found


class Queue(nn.Module):
    """The newest `size` unit vectors float32 [size, D]; those that were never written are random."""

    vectors: Tensor
    place: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.normalize(torch.randn(size, width), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, vectors: Tensor) -> None:
        """Put float [B, D] in the places of the oldest; of more than the queue holds, the last."""
        newest = vectors.float()[-len(self.vectors) :]
        places = (self.place + torch.arange(len(newest), device=newest.device)) % len(self.vectors)
        self.vectors[places] = newest
        self.place.copy_((self.place + len(newest)) % len(self.vectors))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
