"""What AVID and CMA share: banks of all embeddings, draws from them, and noise-contrastive estimation."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NceLoss = Literal["binary", "infonce"]

# Per drawn row, rows of a bank up to which a product with all of them is faster than gathering the drawn ones: on a
# CPU, 0.10 s against 3.6 s for 256 x 1,024 of 10,000 rows 512 wide, and as fast at about 100,000 rows.
ROWS_PER_DRAW = 100


class Banks(nn.Module):
    """A slow memory of both embeddings of each item, float32 [2, N, D]: row <- unit((1 - m) z + m row).

    What a batch says is noted, and written into the rows after the step: all batches of a step meet the same banks,
    and a step that fails leaves them alone.
    """

    vectors: Tensor

    def __init__(self, vectors: Tensor, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("vectors", F.normalize(vectors, dim=-1))
        self._noted: list[tuple[Tensor, Tensor]] = []

    def note(self, places: Tensor, embeddings: Tensor) -> None:
        """Of the items in rows int64 [B], embeddings float32 [2, B, D]."""
        self._noted.append((places, embeddings.detach()))

    @torch.no_grad()
    def write(self) -> int:
        """Move the rows of all that was noted since the last time, and say how many they were."""
        for places, embeddings in self._noted:
            moved = self.vectors[:, places].lerp(embeddings, 1 - self.momentum)
            self.vectors[:, places] = F.normalize(moved, dim=-1)
        num_rows = sum(len(places) for places, _ in self._noted)
        self._noted.clear()
        return num_rows


class Nce(nn.Module):
    """Telling what belongs to an item from n drawn negatives; s' are theirs, s that of one of its positives.

    binary:   softplus(z - s) + sum over negatives softplus(s' - z),  z = log(n Z)
              = - log( e^s / (e^s + n Z) ) - sum log( n Z / (e^{s'} + n Z) )
    infonce:  - log( e^s / (e^s + sum e^{s'}) )

    Z, the mean of e^{s'} over the first batch, is kept from then on (Gutmann and Hyvarinen 2010).
    """

    log_mean: Tensor
    is_known: Tensor

    def __init__(self, loss: NceLoss) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("log_mean", torch.zeros(()))
        self.register_buffer("is_known", torch.zeros((), dtype=torch.int64))

    def forward(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Scores over temperature, float32 [S, B, P] and [S, B, n] -> the mean over positives, [S, B]."""
        if self.loss == "infonce":
            return F.softplus(negatives.logsumexp(-1, keepdim=True) - positives).mean(-1)
        z = self._log_mean(negatives.detach()) + math.log(negatives.shape[-1])
        return F.softplus(z - positives).mean(-1) + F.softplus(negatives - z).sum(-1)

    def _log_mean(self, scores: Tensor) -> Tensor:
        """Log Z; without a first batch, of nothing."""
        if scores.numel():
            new = scores.flatten().logsumexp(0) - math.log(scores.numel())
            self.log_mean.copy_(torch.where(self.is_known > 0, self.log_mean, new))
            self.is_known.fill_(1)
        return self.log_mean


def scores(queries: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Inner products of each query [B, D] with rows of its own, int64 [B, n], of a bank [N, D]: [B, n]."""
    if len(bank) <= ROWS_PER_DRAW * rows.shape[1]:
        return (queries @ bank.T).gather(1, rows)
    return torch.einsum("bd,bnd->bn", queries, bank[rows])


def drawn_among(num_rows: int, without: Tensor, num: int) -> Tensor:
    """For each of B, `num` of so many rows, with repeats, int64 [B, num]; none of `without` [B, E], ascending.

    With these taken out, a row r of those left is the row r + how many of them come before it.
    """
    size = len(without), num
    left = torch.randint(num_rows - without.shape[1], size, device=without.device)
    before = without - torch.arange(without.shape[1], device=without.device)
    return left + torch.searchsorted(before, left, right=True)
