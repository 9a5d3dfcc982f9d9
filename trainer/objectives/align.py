"""Teacher-student alignment: the student must pick its momentum teacher's key of the same pair out of many.

    L_align = 1/B sum_i sum over (x, y) of t2i, i2t, i2i, t2t  CE( y_i, softmax_j( z_i^x . k_j^y / t ) )
    y_i = (1 - a) one-hot_i + a softmax_j( z_i^x,m . k_j^y / t )
    k^y = the batch's z^y,m, then the older ones in the queue of y

z the student's embeddings, z^m those of its momentum copy. Duan et al. 2022 (CODIS, arXiv 2203.00048), after
ALBEF (Li et al. 2021, arXiv 2107.07651). The share a of the teacher's softmax grows evenly from 0 to `alpha` over
the first `ramp_steps` steps, since the teacher knows nothing at first; ALBEF's grows over its first epoch, but an
objective counts steps. Deviation: ALBEF learns the temperature from 0.07, here it stays. Of one modality alone
there is one part, to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.objectives.queue import Queue
from trainer.ranges import Count, Positive, Share


@dataclass(frozen=True, kw_only=True)
class Align(ObjectiveConfig):
    """`momentum` of the copy, `queue_size` of each modality's queue, `alpha` the teacher's share in the targets."""

    kind: Literal["align"] = "align"
    temperature: Positive = 0.07
    momentum: Share = 0.995
    queue_size: Count = 1024
    alpha: Share = 0.4
    ramp_steps: Count = 100

    def build(self, context: Context) -> AlignLoss:
        """The objective as a module; it owns the queues."""
        return AlignLoss(self, context)


class AlignLoss(Loss):
    """One part per direction."""

    num_steps: Tensor

    def __init__(self, config: Align, context: Context) -> None:
        super().__init__()
        self.config = config
        self.copy = context.student_copy(config.momentum)
        self.queues = nn.ModuleDict(
            {m: Queue.of_units(config.queue_size, context.embedding_dim) for m in context.modalities}
        )
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Embeddings [B, D] of the modalities, the student's and its copy's -> float32 scalars."""
        students, teachers = forward.main, self.copy.passed(forward)
        fast = {modality: students[f"{modality}/embedding"].float() for modality in batch.pair}
        slow = {modality: teachers[f"{modality}/embedding"].float() for modality in batch.pair}
        parts = {}
        for target in batch.pair:
            queue = self._queue(target)
            with torch.autocast(slow[target].device.type, enabled=False):
                keys = torch.cat([slow[target], queue.rows])
                for source in batch.pair:
                    parts[f"{source}-to-{target}"] = self._divergence(fast[source], slow[source], keys)
            queue.note(slow[target])
        return parts

    def stepped(self, student: nn.Module) -> None:
        """Move the copy, and write the step's keys."""
        self.copy.follow(student)
        for modality in self.queues:
            self._queue(modality).write()
        self.num_steps += 1

    def _divergence(self, queries: Tensor, teacher: Tensor, keys: Tensor) -> Tensor:
        """Of queries [B, D], the teacher's too, and keys [B + Q, D], of which the first B are theirs in order."""
        temperature = self.config.temperature
        alpha = self.config.alpha * (self.num_steps / self.config.ramp_steps).clamp(max=1)
        soft = (teacher @ keys.T / temperature).softmax(-1)
        own = torch.eye(len(queries), len(keys), device=keys.device)
        return F.cross_entropy(queries @ keys.T / temperature, torch.lerp(own, soft, alpha))

    def _queue(self, modality: str) -> Queue:
        queue = self.queues[modality]
        assert isinstance(queue, Queue)
        return queue
