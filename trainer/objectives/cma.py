"""CMA: items that both modalities find alike are positives of each other, within each modality.

    rho_ij = min(v_bar_i . v_bar_j, a_bar_i . a_bar_j)        P_i = the K others with the largest rho_ij
    L_CMA  = 1/B sum_i 1/|Q_i| sum_{j in Q_i} [ NCE(v_i -> v_bar_j) + NCE(a_i -> a_bar_j) ]

with Q_i drawn from P_i, and negatives, one set for all of Q_i, from the items of the batch's stream without i and
P_i. Morgado et al. 2021 (arXiv 2004.12943). It is added to `avid`, and begins from a run of it. Its banks are its
own, empty at first: an item's first embedding is its row. Positives are found anew each time that `refresh_epochs`
times as many items as there are have been seen, among those seen so far; an item without adds 0. The authors' code
takes AVID's banks and Z, halves each direction, and may draw a positive twice, and i as its own negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.objectives.agreement import agreeing
from trainer.objectives.banks import Banks, Nce, NceLoss, drawn_among, scores
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Count, Positive, Share


@dataclass(frozen=True, kw_only=True)
class Cma(ObjectiveConfig):
    """Within-modal discrimination of `num_positives` drawn ones of the `top_k` K."""

    kind: Literal["cma"] = "cma"
    loss: NceLoss = "binary"
    temperature: Positive = 0.07
    top_k: Count = 32
    num_positives: Count = 8
    num_negatives: Count = 64
    momentum: Share = 0.5
    refresh_epochs: Positive = 1.0

    def build(self, context: Context) -> CmaLoss:
        """The objective as a module; it owns the banks, the positives and Z."""
        if self.num_positives > self.top_k:
            raise ConfigError(f"objective cma: can't draw num_positives {self.num_positives} of top_k {self.top_k}")
        return CmaLoss(self, context)


class CmaLoss(Loss):
    """One part per modality. Of each row, `positives` int64 [N, K], ascending, and `starts` count in its stream."""

    positives: Tensor
    starts: Tensor
    num_seen: Tensor

    def __init__(self, config: Cma, context: Context) -> None:
        super().__init__()
        self.config, num_places = config, context.num_places
        self.banks = Banks(torch.zeros(2, num_places, context.embedding_dim), config.momentum)
        self.nce = Nce(config.loss)
        self.register_buffer("positives", torch.full((num_places, config.top_k), -1))
        self.register_buffer("starts", torch.full((num_places,), -1))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the two modalities -> float32 scalars."""
        config, peers = self.config, batch.peers
        if len(peers) < config.top_k + 2:
            raise ConfigError(f"objective cma: top_k {config.top_k} of {len(peers)} items leaves no negatives")
        both, num = torch.stack(forward.embeddings()), config.num_positives
        having = (self.positives[batch.places, 0] >= 0).nonzero().squeeze(1)
        rows = self._drawn(batch.places[having], peers)
        with torch.autocast(both.device.type, enabled=False):
            both, banks = both.float(), self.banks.vectors[:, peers.start : peers.stop]
            found = [scores(one[having], bank, rows) for one, bank in zip(both, banks, strict=True)]
            logits = torch.stack(found) / config.temperature  # [2, R, 8 + n]
            values = self.nce(logits[..., :num], logits[..., num:]).sum(1) / both.shape[1]
        self.banks.note(batch.places, both)
        self.starts[batch.places] = peers.start
        return {f"{name}-to-{name}": value for name, value in zip(batch.pair, values, strict=True)}

    @torch.no_grad()
    def stepped(self, student: nn.Module) -> None:
        """Write the step's embeddings into the banks; find the positives anew if it is time."""
        self.num_seen += self.banks.write()
        if self.num_seen < self.config.refresh_epochs * len(self.starts):
            return
        self.num_seen.zero_()
        for start in sorted(set(self.starts.tolist()) - {-1}):
            rows = (self.starts == start).nonzero().squeeze(1)
            if len(rows) > self.config.top_k:
                found = agreeing(self.banks.vectors[:, rows], self.config.top_k)
                self.positives[rows] = (rows[found] - start).sort(1).values

    def _drawn(self, places: Tensor, peers: range) -> Tensor:
        """For each of B, some of its positives, then negatives: rows of its stream, int64 [B, 8 + n]."""
        found, own = self.positives[places], places[:, None] - peers.start
        order = torch.rand(found.shape, device=found.device).argsort(1)[:, : self.config.num_positives]
        excluded = torch.cat([found, own], dim=1).sort(1).values
        return torch.cat([found.gather(1, order), drawn_among(len(peers), excluded, self.config.num_negatives)], 1)
