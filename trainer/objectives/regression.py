"""Regression: the student's value at every timestep is the teacher's.

    mse         L = 1/N sum_it  1/D |h(z_it) - y_it|^2
    smooth_l1   L = 1/N sum_it  1/D sum_d  e^2 / 2b where e = |h(z_itd) - y_itd| < b, and e - b/2 elsewhere
    cosine      L = 1/N sum_it  1 - cos(h(z_it), y_it)

z the student's tokens [B, T, W] of the anchor, y its stored target [B, T, D], N the B T less what is padding, h the
identity, which takes W = D, or a linear layer for each modality. A target that is one vector of an item [B, D] is
regressed from the student's features [B, W]. Baevski et al. 2022, data2vec (arXiv 2202.03555, 2212.07525), whose
smooth-L1 and MSE these are; they regress the timesteps that were masked and train the teacher on the way. Here it
is frozen, nothing is masked, and all timesteps count. The cosine is no part of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.objectives.loss import Context, Loss, ObjectiveConfig
from trainer.ranges import Positive
from trainer.students.layers import unit


@dataclass(frozen=True, kw_only=True)
class Regression(ObjectiveConfig):
    """All timesteps of `target`, an entry of the recipe's targets; `beta` is where smooth-L1 turns linear.

    `head: none` compares the student's tokens themselves, so that its width must be the teacher's.
    """

    kind: Literal["regression"] = "regression"
    target: str = "targets"
    loss: Literal["mse", "smooth_l1", "cosine"] = "mse"
    beta: Positive = 1.0
    head: Literal["none", "linear"] = "none"

    @property
    def needs(self) -> tuple[str, ...]:
        """The targets that must be in every stream."""
        return (self.target,)

    def build(self, context: Context) -> RegressionLoss:
        """The objective as a module; it owns the heads."""
        heads = {
            modality: self._head(context, modality, shapes[self.target])
            for modality, shapes in context.anchor_targets.items()
            if self.target in shapes
        }
        return RegressionLoss(self, heads)

    def _head(self, context: Context, modality: str, shape: tuple[int, ...]) -> nn.Module:
        if is_sequence := len(shape) == 2:
            self._require_all_tokens(context, modality, shape[0])
        width = context.width if is_sequence else context.embedding_dim
        if self.head == "linear":
            return nn.Linear(width, shape[-1])
        if width != shape[-1]:
            what, setting = ("tokens", "width") if is_sequence else ("features", "embedding_dim")
            raise ConfigError(
                f"objective regression: the student's {modality} {what} are {width} wide, and the target "
                f"`{self.target}` {shape[-1]}: set student.{setting} to {shape[-1]}, or `head: linear`"
            )
        return nn.Identity()

    def _require_all_tokens(self, context: Context, modality: str, num_tokens: int) -> None:
        if dropped := context.token_dropout.get(modality, 0.0):
            raise ConfigError(
                f"objective regression: student.adapters.{modality}.token_dropout is {dropped}, and every token of "
                "a sequence is regressed; set it to 0"
            )
        if (num_read := context.num_tokens.get(modality, num_tokens)) != num_tokens:
            raise ConfigError(
                f"objective regression: the student reads {num_read} {modality} tokens, and the target "
                f"`{self.target}` has {num_tokens}: choose fields that are row for row the same tokens"
            )


class RegressionLoss(Loss):
    """One part: the anchor's modality, whose target it is."""

    def __init__(self, config: Regression, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.heads = nn.ModuleDict(heads)

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """Targets float [B, T, D] and the student's tokens [B, T', W], cut to the longest row -> float32 scalar."""
        modality, wanted = batch.pair[0], batch.targets[self.config.target].detach()
        is_sequence = wanted.ndim == 3
        given = forward.main[f"{modality}/{'tokens' if is_sequence else 'features'}"]
        with torch.autocast(given.device.type, enabled=False):
            found = self.heads[modality](given.float())
            if not is_sequence:
                return {modality: self._errors(found, wanted.float()).mean()}
            errors = self._errors(found, wanted[:, : found.shape[1]].float())
            mask = forward.main[f"{modality}/mask"]
            return {modality: errors.where(mask, 0.0).sum() / mask.sum()}

    def _errors(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Float32 [..., D] twice -> [...]."""
        if self.config.loss == "mse":
            return F.mse_loss(found, wanted, reduction="none").mean(-1)
        if self.config.loss == "smooth_l1":
            return F.smooth_l1_loss(found, wanted, beta=self.config.beta, reduction="none").mean(-1)
        return 1 - (unit(found) * unit(wanted)).sum(-1)
