"""Category words: an item that is no text, as a few words of a vocabulary, so that what reads text can read it.

    y_k = softmax( (log p_k + g_k) / tau ),  g_k ~ Gumbel(0, 1),  tau_s = tau_0 (tau_n / tau_0)^min(1, s/n)
    e_k = sum_v y_kv table_v

p_k [V] is the k-th of K classifications of the item, s counts the optimizer's steps. With `straight_through` y_k is
the one-hot of its largest entry, and has the gradient of the softmax. Out of training g = 0. Jang et al. 2017
(Gumbel-softmax, arXiv 1611.01144), as in Vx2Text (Lin et al. 2021, arXiv 2101.12059).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.ranges import Count, Positive


@dataclass(frozen=True, kw_only=True)
class Gumbel:
    """Temperature from `start` to `end` in the first `num_steps` steps, and whether what is read is one word."""

    start: Positive = 1.0
    end: Positive = 0.5
    num_steps: Count = 1000
    straight_through: bool = False

    def temperature(self, step: Tensor) -> Tensor:
        """After so many steps."""
        share = (step / self.num_steps).clamp(max=1.0)
        return self.start * (self.end / self.start) ** share

    def drawn(self, logits: Tensor, step: Tensor, *, noisy: bool) -> Tensor:
        """Logits float32 [..., V] -> weights of the words, whose sum is 1; -inf is never drawn."""
        tau = float(self.temperature(step))
        if noisy:
            return F.gumbel_softmax(logits, tau, hard=self.straight_through)
        soft = (logits / tau).softmax(-1)
        if not self.straight_through:
            return soft
        return F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)


class CategoryWords(nn.Module):
    """Of features [B, D] of each modality, K words of a vocabulary of V; those in `banned`, bool [V], are none."""

    banned: Tensor
    step: Tensor

    def __init__(
        self, gumbel: Gumbel, modalities: Sequence[str], dim: int, width: int, num_words: int, banned: Tensor
    ) -> None:
        super().__init__()
        self.gumbel, self.num_words = gumbel, num_words
        self.hidden = nn.ModuleDict({m: nn.Linear(dim, num_words * width) for m in modalities})
        self.classify = nn.ModuleDict({m: nn.Linear(width, len(banned)) for m in modalities})
        self.register_buffer("banned", banned, persistent=False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, modality: str, features: Tensor) -> Tensor:
        """The words' weights, float32 [B, K, V]."""
        return self.gumbel.drawn(self.logits(modality, features), self.step, noisy=self.training)

    def logits(self, modality: str, features: Tensor) -> Tensor:
        """Of K classifications, float32 [B, K, V]."""
        hidden = F.gelu(self.hidden[modality](features.float())).view(len(features), self.num_words, -1)
        logits: Tensor = self.classify[modality](hidden)
        return logits.masked_fill(self.banned, -torch.inf)

    def stepped(self) -> None:
        """Anneal."""
        self.step += 1
