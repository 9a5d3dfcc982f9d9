"""Tag vectors of the anchors, by which items may be alike (MCT, Yuan et al. 2021, arXiv 2104.12836).

`labels` are their classes, one-hot: nothing is like an item without one. `target` is the softmax of stored logits,
of unit length. Both stand in for the words with which the paper's images are tagged.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch
from trainer.objectives.loss import Context
from trainer.students.layers import unit

TagKind = Literal["labels", "target"]


class Tags(nn.Module):
    """What of a batch is its tags, `num` G of them; without a kind there are none."""

    labels: Tensor

    def __init__(self, kind: TagKind | None, target: str, context: Context) -> None:
        super().__init__()
        self.kind, self.target = kind, target
        self.register_buffer("labels", context.labels, persistent=False)
        self.num = _num_tags(kind, target, context)

    def forward(self, batch: Batch) -> Tensor:
        """Of the anchors, float32 [B, G]; all zero for one without a tag."""
        if self.kind == "target":
            return unit(batch.targets[self.target].float().softmax(-1))
        if self.kind == "labels":
            labels = self.labels[batch.places]
            return F.one_hot(labels.clamp(min=0), self.num) * (labels >= 0).float()[:, None]
        return torch.zeros(batch.num_rows, 0, device=self.labels.device)


def _num_tags(kind: TagKind | None, target: str, context: Context) -> int:
    if kind == "labels":
        num_labels = int(context.labels.max()) + 1 if len(context.labels) else 0
        if not num_labels:
            raise ConfigError(
                "`tags: labels`, and the manifests of the stores give no anchor a label; take `tags: target` with "
                "a stored class distribution, or `tags: null`"
            )
        return num_labels
    if kind == "target":
        shape = (context.targets or {})[target]
        if len(shape) != 1:
            raise ConfigError(
                f"`tags: target`, and the target {target} is of shape {list(shape)}; take one with a vector for "
                "each item, such as logits"
            )
        return shape[0]
    return 0
