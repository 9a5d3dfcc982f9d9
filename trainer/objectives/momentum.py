"""Momentum copies: what is trained, followed slowly; their outputs are keys (He et al. 2020, arXiv 1911.05722)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from trainer.batch import Forward, Passed
from trainer.students.layers import unit


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
        """Take a step towards the module's parameters, and take over its buffers."""
        for slow, fast in zip(self.module.parameters(), module.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)
        # Constants, such as the infinity by which a channel that never moves is divided: inf - inf is no number.
        for kept, measured in zip(self.module.buffers(), module.buffers(), strict=True):
            kept.copy_(measured)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Of a copy of a head: its outputs."""
        found: Tensor = self.module(x)
        return found


class StudentCopy(nn.Module):
    """The student's copy of some momentum, one for all objectives that ask for it.

    The first of them owns it, and so keeps and moves it: there is one to keep, and one pass over a batch. `known`
    are the copies that have been asked for.
    """

    def __init__(self, student: nn.Module, momentum: float, known: dict[float, MomentumCopy]) -> None:
        super().__init__()
        self.owned: MomentumCopy | None = None
        if momentum not in known:
            self.owned = known[momentum] = MomentumCopy(student, momentum)
        self._copies = [known[momentum]]  # in a list, which is no part of the state

    def follow(self, student: nn.Module) -> None:
        """Move it, once however many share it."""
        if self.owned is not None:
            self.owned.follow(student)

    @torch.no_grad()
    def passed(self, forward: Forward, *, other: bool = False) -> Passed:
        """Its outputs for the batch, or for what else is shown of the items."""
        return forward.of(self._copies[0].module, other=other)


class MomentumHead(nn.Module):
    """A head to D' values, scaled to unit length, for queries, and its momentum copy, for keys."""

    def __init__(self, head: nn.Module, momentum: float) -> None:
        super().__init__()
        self.head, self.copy = head, MomentumCopy(head, momentum)

    def query(self, features: Tensor) -> Tensor:
        """Float [B, D] -> float32 [B, D'], unit length."""
        return unit(self.head(features.float()))

    def key(self, features: Tensor) -> Tensor:
        """The same by the copy, without a gradient."""
        return unit(self.copy(features.float()))

    def follow(self) -> None:
        """Move the copy."""
        self.copy.follow(self.head)
