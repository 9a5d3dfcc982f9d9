"""Masked language modelling: words that are hidden from the student are told from what is left.

    L_mlm = - 1/|M| sum_{(i, t) in M} log softmax( head(h_it) )[w_it]

M the hidden tokens, `share` of each caption's but at least one, never a special one such as [CLS]; h_it what
stands in their place after the caption has read the image (or without reading: text alone), w_it their ids in the
vocabulary of the training captions. Devlin et al. 2018 (BERT, arXiv 1810.04805); with an image as in UNITER (Chen
et al. 2019, arXiv 1909.11740), ALBEF and CODIS (arXiv 2203.00048); over languages as in M3P (Ni et al. 2020, arXiv
2006.02635).

Deviations: all hidden tokens are replaced by one learned vector, where BERT leaves 10% of them as they are and
makes 10% another word: its [MASK] is never met in fine-tuning, while this student's passes without a mask are
trained beside it. The head is BERT's with an output table of its own, since words' vectors are the frozen
encoder's. Where a batch has no text, or not what is to be read, there is no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Passed, Side
from trainer.objectives.hidden import hidden
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Share

TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Mlm(ObjectiveConfig):
    """`share` of the words are hidden; `reads` is the modality that the caption reads, None: none."""

    kind: Literal["mlm"] = "mlm"
    share: Share = 0.15
    reads: str | None = "image"

    @property
    def reads_words(self) -> bool:
        """They are what is told."""
        return True

    def build(self, context: Context) -> MlmLoss:
        """The objective as a module; it owns the head."""
        if self.reads is not None:
            context.require_fusion(self.kind)
        if not context.vocabulary:
            raise ConfigError(
                f"objective {self.kind} tells words: give it a stream with captions, such as image-text"
            )
        return MlmLoss(self, context)


class MlmLoss(Loss):
    """One part."""

    special: Tensor

    def __init__(self, config: Mlm, context: Context) -> None:
        super().__init__()
        self.config = config
        num_words, width = len(context.vocabulary), context.width
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, num_words)
        )
        special = torch.zeros(num_words, dtype=torch.bool)
        special[list(context.special)] = True
        self.register_buffer("special", special, persistent=False)

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Ids int64 [B, T], and tokens [B, T, W] of the pass that does not see them -> float32 scalar."""
        if TEXT not in batch.pair or self.config.reads not in (None, *batch.pair):
            return {}
        words = batch.words[TEXT]
        masked = hidden((words >= 0) & ~self.special[words.clamp(min=0)], self.config.share)
        passed = forward.masked({TEXT: masked})
        tokens = passed[f"{TEXT}/tokens"] if self.config.reads is None else self._fused(forward, passed, words)
        told = tokens[masked]  # [N, W]
        with torch.autocast(told.device.type, enabled=False):
            loss = F.cross_entropy(self.head(told.float()), words[masked], reduction="sum")
        return {"words": loss / masked.sum().clamp(min=1)}

    def _fused(self, forward: Forward, passed: Passed, words: Tensor) -> Tensor:
        assert self.config.reads is not None
        rows = torch.arange(len(words), device=words.device)
        return forward.fused(Side(TEXT, passed, rows), Side(self.config.reads, forward.main, rows))["tokens"]
