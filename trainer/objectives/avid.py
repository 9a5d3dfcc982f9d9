"""AVID: audio-visual instance discrimination, each modality against a memory of the other.

    L_cross  = 1/B sum_i [ NCE(v_i -> a_bar_i) + NCE(a_i -> v_bar_i) ]        scores: cosine / temperature
    L_within = 1/B sum_i [ NCE(v_i -> v_bar_i) + NCE(a_i -> a_bar_i) ]        L_joint = L_cross + L_within

with memory banks v_bar, a_bar [N, D] of the whole set, and as negatives rows of them that are drawn from the items
of the batch's stream without i. Morgado et al. 2021 (arXiv 2004.12943). The banks begin at random, as theirs; they
move after the step, theirs after the batch; Z (see `Nce`) is the mean over all directions, theirs was that of the
first; a direction counts whole, where their code halves it. Directions share their draws, as theirs do.

Any two modalities will do. All ranks see the whole batch, so that their banks, draws and Z are equal. All batches
of a step meet the same banks: its loss is that of one larger batch, but that Z is of the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.banks import Banks, Nce, NceLoss, drawn_among, scores
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Count, Positive, Share

# (embedding, bank): 0 the anchor's, 1 its partner's.
CROSS, WITHIN = ((0, 1), (1, 0)), ((0, 0), (1, 1))
WAYS = {"cross": CROSS, "within": WITHIN, "joint": CROSS + WITHIN}


@dataclass(frozen=True, kw_only=True)
class Avid(ObjectiveConfig):
    """Instance discrimination; `variant` is which of the losses above, `momentum` that of the banks."""

    kind: Literal["avid"] = "avid"
    variant: Literal["cross", "within", "joint"] = "cross"
    loss: NceLoss = "binary"
    temperature: Positive = 0.07
    num_negatives: Count = 1024
    momentum: Share = 0.5

    def build(self, context: Context) -> AvidLoss:
        """The objective as a module; it owns the banks and Z."""
        return AvidLoss(self, context)


class AvidLoss(Loss):
    """One part per direction."""

    def __init__(self, config: Avid, context: Context) -> None:
        super().__init__()
        self.config = config
        self.banks = Banks(torch.randn(2, context.num_places, context.embedding_dim), config.momentum)
        self.nce = Nce(config.loss)

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        config, pair, peers = self.config, batch.pair, batch.peers
        both = torch.stack(forward.embeddings())
        own = (batch.places - peers.start)[:, None]
        rows = torch.cat([own, drawn_among(len(peers), own, config.num_negatives)], dim=1)
        with torch.autocast(both.device.type, enabled=False):
            both = both.float()
            banks = self.banks.vectors[:, peers.start : peers.stop]
            found = [scores(both[one], banks[other], rows) for one, other in WAYS[config.variant]]
            logits = torch.stack(found) / config.temperature  # [S, B, 1 + n]
            values = self.nce(logits[..., :1], logits[..., 1:]).mean(1)
        self.banks.note(batch.places, both)
        names = [f"{pair[one]}-to-{pair[other]}" for one, other in WAYS[config.variant]]
        return dict(zip(names, values, strict=True))

    def stepped(self, student: nn.Module) -> None:
        """Write the step's embeddings into the banks."""
        self.banks.write()
