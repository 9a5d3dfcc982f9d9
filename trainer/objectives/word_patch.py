"""Word-patch alignment: what it costs to move a caption's words onto an image's patches, little for a true pair.

    L_wpa = 1/2B sum_i [ <T_ii, C_ii> - <T_in(i), C_in(i)> ],  C_ij = 1 - cos(words of i, patches of j)

T the plan between even mass on the real words and even mass on the real patches that IPOT finds (Xie et al. 2018,
arXiv 1802.04307), without gradient; n(i) another image, all equally likely. UNITER (Chen et al. 2019, arXiv
1909.11740, WRA) and ViLT (Kim et al. 2021, arXiv 2102.03334), with 50 iterations and a step 1/b of 2.

The papers write the first term alone, which is least, 0, where all tokens are one vector; the second is in the code
of both, and with it such a collapse has 0 as any other student without knowledge has. Deviations: tokens are those
of the student's trunk, before one modality reads the other, and special tokens such as [CLS] are words as others
are. Where a batch lacks either modality there is no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.objectives.transport import even, ipot
from trainer.ranges import Count, Positive
from trainer.students.layers import unit


@dataclass(frozen=True, kw_only=True)
class WordPatch(ObjectiveConfig):
    """`epsilon` b of IPOT, and how many turns it takes; `words` are moved onto `patches`."""

    kind: Literal["word_patch"] = "word_patch"
    words: str = "text"
    patches: str = "image"
    epsilon: Positive = 0.5
    num_iterations: Count = 50

    def build(self, context: Context) -> WordPatchLoss:
        """The objective as a module."""
        for modality in (self.words, self.patches):
            if modality not in context.modalities:
                raise ConfigError(f"objective {self.kind} aligns {modality} tokens, and no stream has any")
        return WordPatchLoss(self)


class WordPatchLoss(Loss):
    """One part for the pairs that match, one for those that don't."""

    def __init__(self, config: WordPatch) -> None:
        super().__init__()
        self.config = config

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Tokens [B, T, W] and masks bool [B, T] of both modalities -> float32 scalars."""
        sides = self.config.words, self.config.patches
        if not set(sides) <= set(batch.pair):
            return {}
        words, patches = (forward.main[f"{modality}/tokens"] for modality in sides)
        real_words, real_patches = (forward.main[f"{modality}/mask"] for modality in sides)
        own = torch.arange(len(words), device=words.device)
        others = (own + torch.randint(1, len(own), (1,), device=own.device)) % len(own)
        with torch.autocast(words.device.type, enabled=False):
            words, patches = unit(words), unit(patches)
            matched, mismatched = (
                self._moved(words, patches[rows], real_words, real_patches[rows]) for rows in (own, others)
            )
        return {"matched": matched.mean() / 2, "mismatched": -mismatched.mean() / 2}

    def _moved(self, words: Tensor, patches: Tensor, real_words: Tensor, real_patches: Tensor) -> Tensor:
        """The cost of each pair, float32 [B], of unit tokens [B, T, W] and [B, R, W]."""
        cost = 1 - words @ patches.transpose(1, 2)
        plan = ipot(
            cost,
            even(real_words),
            even(real_patches),
            epsilon=self.config.epsilon,
            num_iterations=self.config.num_iterations,
        )
        return (plan * cost).sum((1, 2))
