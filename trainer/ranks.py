"""Ranks: the processes of one run, each with its share of every batch.

An objective knows nothing of them. Rank r runs the student on its own rows, z_r = f(x_r, w), gathers the outputs of
all, z = (z_1, .., z_R), and computes the loss of the whole batch, L(z, p), with p the objectives' parameters. So it
is the same number on every rank, and so is what an objective keeps (banks, queues, codebooks, statistics). Then

    dL/dw = sum_r (dL/dz_r) (dz_r/dw)        dL/dp is whole on every rank

where rank r has all that its term takes: the gather's backward pass hands it the gradient of its own rows and asks
nobody, and one sum over the ranks follows the backward pass. That is cheaper than a gather that sums R equal
gradients only for a mean over ranks to divide by R again, it is made once per step however many batches the step
accumulates, and a batch may leave parts of the student out or pass through it several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of `num` processes this one is; `key` are the numbers that its students' random draws depend on.

    They talk through torch's default group, which must take tensors of the host too ("cpu:gloo,cuda:nccl").
    """

    rank: int = 0
    num: int = 1
    key: tuple[int, ...] = ()

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def at(self, *key: int) -> Ranks:
        """These ranks at one batch of the run."""
        return replace(self, key=key)

    @contextmanager
    def drawing(self, number: int) -> Iterator[None]:
        """Draw as this rank alone does in its `number`th pass over the batch; what is outside draws as all do.

        An objective may then draw, and have the same on every rank, while dropout differs between ranks. What a
        pass draws is a function of the key, so that no rank has a generator's state to keep.
        """
        if self.num == 1:
            yield
            return
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            seed = np.random.SeedSequence((*self.key, number, self.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(seed[0]))
            yield

    def share(self, num_rows: int) -> slice:
        """Which of so many rows are this rank's."""
        return slice(num_rows * self.rank // self.num, num_rows * (self.rank + 1) // self.num)

    def gathered(self, own: Mapping[str, Tensor], *, summed: bool = False) -> Mapping[str, Tensor]:
        """The rows of all ranks, in their order, of every tensor [B, ...] that is then looked up.

        Ranks may differ in B, and in what follows it, such as the longest row of tokens: shorter ones are padded
        with zeros, as one process would have padded them. Every rank must look up the same names in the same order.

        `summed` is for what the ranks then compute shares of (the student's passes over pairs of rows), where each
        knows a part of the gradient: the backward pass adds them up.
        """
        if self.num == 1:
            return own
        shapes = self._all_shapes(list(own.values()))
        return Lazily(
            {
                name: partial(_gather, self, tensor, found, summed)
                for (name, tensor), found in zip(own.items(), shapes, strict=True)
            }
        )

    @torch.no_grad()
    def add_up(self, student: nn.Module, objectives: nn.Module) -> None:
        """Make the gradients those of the whole batch: the student's of own rows, and the objectives'."""
        if self.num == 1:
            return
        parts = [p.grad for p in student.parameters() if p.grad is not None]
        wholes = [p.grad for p in objectives.parameters() if p.grad is not None]
        # The same on every rank but for the order in which a GPU adds: their mean keeps the ranks together.
        for whole in wholes:
            whole.div_(self.num)
        grads = [*parts, *wholes]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, summed in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))

    def total(self, own: int) -> int:
        """The sum of every rank's number."""
        summed = torch.tensor(own)
        if self.num > 1:
            dist.all_reduce(summed)
        return int(summed)

    def all(self, value: T) -> list[T]:
        """The values of all ranks."""
        values: list[Any] = [value] * self.num
        if self.num > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """The first rank's value; the others wait for it."""
        values = [value]
        if self.num > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def _all_shapes(self, own: Sequence[Tensor]) -> list[list[Shape]]:
        """Of each tensor, its shape on every rank."""
        flat = torch.tensor([size for tensor in own for size in tensor.shape], dtype=torch.int64)
        everyone = [torch.empty_like(flat) for _ in range(self.num)]
        dist.all_gather(everyone, flat)
        by_rank = [iter(sizes.tolist()) for sizes in everyone]
        return [[tuple(next(sizes) for _ in tensor.shape) for sizes in by_rank] for tensor in own]


ALONE = Ranks()


class Lazily(Mapping[str, T]):
    """Values that are each made when they are first looked up."""

    def __init__(self, makers: Mapping[str, Callable[[], T]]) -> None:
        self._makers = makers
        self._made: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _gather(ranks: Ranks, own: Tensor, shapes: Sequence[Shape], summed: bool) -> Tensor:
    counts = [shape[0] for shape in shapes]
    widest = tuple(max(sizes) for sizes in zip(*(shape[1:] for shape in shapes), strict=True))
    missing = [most - size for most, size in zip(widest, own.shape[1:], strict=True)]
    if any(missing):
        own = F.pad(own, [amount for size in reversed(missing) for amount in (0, size)])
    found: Tensor = _Gather.apply(own, ranks.rank, counts, summed)
    return found


class _Gather(torch.autograd.Function):
    """Own rows [B_r, ...] -> the rows of all ranks [sum of B_r, ...]; backward: the gradient of the own ones."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, counts: Sequence[int], summed: bool) -> Tensor:
        ctx.first, ctx.count, ctx.summed = sum(counts[:rank]), counts[rank], summed
        room = F.pad(own, [*[0, 0] * (own.ndim - 1), 0, max(counts) - len(own)]).contiguous()
        everyone = [torch.empty_like(room) for _ in counts]
        # As bytes: backends differ in the dtypes that they know.
        dist.all_gather([_bytes(tensor) for tensor in everyone], _bytes(room))
        return torch.cat([tensor[:count] for tensor, count in zip(everyone, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        if ctx.summed:
            total = gradient.float().contiguous()  # a sum of few digits would depend on the number of ranks
            dist.all_reduce(total)
            gradient = total.to(gradient.dtype)
        return gradient.narrow(0, ctx.first, ctx.count), None, None, None


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
