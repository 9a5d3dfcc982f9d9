"""Masked region modelling: what the frozen encoder says of hidden regions is told from the rest and the caption.

    L_mrfr = 1/|M| sum_{(i, t) in M} 1/D |head(h_it) - s(v_it)|^2
    L_kl   = 1/B sum_i KL( g(x_i^v) || softmax(classify(pooled_i)) )                 if `target` names g

M the hidden image tokens, `share` of each image's but at least one; h_it what stands in their place once the image
has read the caption. v_it are the stored features, s their standardisation, (v - mean) / deviation for each of D
channels with the constants of the student's own adapter, measured once on training items: teachers' scales differ
by orders of magnitude. UNITER (Chen et al. 2019, arXiv 1909.11740, MRFR and MRC-kl); M3P (Ni et al. 2020, arXiv
2006.02635).

Deviations: the mean over channels, where both papers sum, so that the size does not depend on the teacher's width;
a store keeps one class distribution for an image and none for its regions, so KL compares that of the image to
what is told of the whole image with its regions hidden. Where a batch lacks either modality there is no part.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward, Side
from trainer.objectives.hidden import hidden
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Share
from trainer.students.adapters import Standardise
from trainer.students.layers import real_tokens


@dataclass(frozen=True, kw_only=True)
class Mrm(ObjectiveConfig):
    """`share` of `modality`'s tokens are hidden, and it reads `reads`; `target` names class logits of an anchor."""

    kind: Literal["mrm"] = "mrm"
    share: Share = 0.15
    modality: str = "image"
    reads: str = "text"
    target: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The target, if there is one."""
        return () if self.target is None else (self.target,)

    def build(self, context: Context) -> MrmLoss:
        """The objective as a module; it owns the heads."""
        context.require_fusion(self.kind)
        if self.modality not in context.modalities:
            raise ConfigError(f"objective {self.kind} hides {self.modality} tokens, and no stream has any")
        shape = (context.targets or {}).get(self.target or "", ())
        if self.target is not None and len(shape) != 1:
            raise ConfigError(
                f"objective {self.kind}: target {self.target} is of shape {list(shape)}, not of classes"
            )
        student: Any = context.student
        return MrmLoss(self, student.adapters.by_modality[self.modality].standardise, context.width, *shape)


class MrmLoss(Loss):
    """One part for the features, one for the classes."""

    def __init__(self, config: Mrm, standardise: Standardise, width: int, num_classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.standardise = deepcopy(standardise)
        features = len(standardise.mean)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, features)
        )
        self.classify = nn.Linear(width, num_classes) if num_classes else None

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Stored features [B, T, D], and tokens [B, T, W] of the pass that does not see some -> float32 scalars."""
        if not {self.config.modality, self.config.reads} <= set(batch.pair):
            return {}
        values, length, _ = batch.inputs[self.config.modality]
        rows = torch.arange(len(values), device=values.device)
        real = real_tokens(length, values.shape[1])
        if real is None:
            real = torch.ones_like(values[..., 0], dtype=torch.bool)
        masked = hidden(real, self.config.share)
        fused = forward.fused(
            Side(self.config.modality, forward.masked({self.config.modality: masked}), rows),
            Side(self.config.reads, forward.main, rows),
        )
        with torch.autocast(values.device.type, enabled=False):
            told = self.head(fused["tokens"][masked].float())  # [N, D]
            parts = {"features": F.mse_loss(told, self.standardise(values[masked]))}
            if self.classify is not None and self.config.target is not None:
                found = self.classify(fused["pooled"].float()).log_softmax(-1)
                wanted = batch.targets[self.config.target].detach().float().log_softmax(-1)
                parts["classes"] = F.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return parts
