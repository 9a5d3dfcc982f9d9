"""Codebook: prototypes between two modalities, to which each is assigned as the transport of the other says.

    cost_ik = 1 - cos(z_i^m, c_k),  T [B, K] the transport plan of even mass, for each modality (`transport.py`)
    p_ik = softmax_k( cos(z_i, c_k) / g )
    L_code = 1/B sum_i [ CE( B T_i^v, p_i^t ) + CE( B T_i^t, p_i^v ) ]
    L_ot = <T^v, cost^v> + <T^t, cost^t>

z the student's embeddings, z^m those of its momentum copy, c the learnable codes [K, D]. No gradient flows through
a plan, and L_ot moves the codes alone, since the copy has no gradient. Duan et al. 2022 (CODIS, arXiv 2203.00048),
where K is 4,000 for four million images. A modality alone follows its own plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.objectives.transport import ipot, sinkhorn
from trainer.ranges import Count, Positive, Share
from trainer.students.layers import unit

PLANS = {"sinkhorn": sinkhorn, "ipot": ipot}


@dataclass(frozen=True, kw_only=True)
class Codebook(ObjectiveConfig):
    """`num_codes` K, `temperature` g; `epsilon` and `num_iterations` are those of the plan."""

    kind: Literal["codebook"] = "codebook"
    num_codes: Count = 512
    temperature: Positive = 0.1
    momentum: Share = 0.995
    plan: Literal["sinkhorn", "ipot"] = "sinkhorn"
    epsilon: Positive = 0.05
    num_iterations: Count = 50

    def build(self, context: Context) -> CodebookLoss:
        """The objective as a module; it owns the codes."""
        return CodebookLoss(self, context)


class CodebookLoss(Loss):
    """For each modality what it takes to follow the other's plan, and the cost of its own."""

    def __init__(self, config: Codebook, context: Context) -> None:
        super().__init__()
        self.config = config
        self.copy = context.student_copy(config.momentum)
        self.codes = nn.Parameter(F.normalize(torch.randn(config.num_codes, context.embedding_dim), dim=-1))

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the modalities, the student's and its copy's -> float32 scalars."""
        students, teachers = forward.main, self.copy.passed(forward)
        fast = torch.stack([students[f"{modality}/embedding"] for modality in batch.pair])  # [M, B, D]
        slow = torch.stack([teachers[f"{modality}/embedding"] for modality in batch.pair])
        with torch.autocast(fast.device.type, enabled=False):
            codes = unit(self.codes)
            costs = 1 - slow.float() @ codes.T
            plans = PLANS[self.config.plan](
                costs, epsilon=self.config.epsilon, num_iterations=self.config.num_iterations
            )
            shares = (fast.float() @ codes.T / self.config.temperature).log_softmax(-1)
            # 1/B sum_i CE(B T_i, .): the number of rows cancels out.
            codings = -(plans.flip(0) * shares).sum((1, 2))
            transports = (plans * costs).sum((1, 2))
        codes_of = {f"{modality}-code": value for modality, value in zip(batch.pair, codings, strict=True)}
        return codes_of | {
            f"{modality}-transport": value for modality, value in zip(batch.pair, transports, strict=True)
        }

    def stepped(self, student: nn.Module) -> None:
        """Move the copy."""
        self.copy.follow(student)
