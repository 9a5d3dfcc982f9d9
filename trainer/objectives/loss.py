"""What every objective is: a configuration, and the module that it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.objectives.momentum import MomentumCopy, StudentCopy
from trainer.ranges import NotNegative


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an objective is built for: sizes come from the stores and the student, never from a recipe.

    `student` is the one that is trained: a momentum copy begins as a copy of it. Its tokens are `width` W wide, its
    features and embeddings `embedding_dim` D. `targets` are the shapes of a row of each target, by name; of the
    streams' pairs, `modalities` names each modality once, and `num_places` counts the anchors of all streams, of
    which `labels` int64 are the classes by place, -1 for none. `copies` are the student's copies by momentum, as
    far as they were asked for. `anchor_targets` are the shapes by the modality that a target is of, then by name;
    `num_tokens` T and `token_dropout` are those of each modality's adapter. `vocabulary` are the words that a
    batch's ids stand for, and `special` the ids of those that stand around any caption, such as [CLS]; both are
    empty unless some objective reads words. `word_vectors` gives the frozen encoder's vectors of the vocabulary,
    float32 [V, D], and costs a pass over captions.
    """

    student: nn.Module
    width: int
    embedding_dim: int
    modalities: Sequence[str] = ()
    targets: Mapping[str, tuple[int, ...]] | None = None
    num_places: int = 0
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    copies: dict[float, MomentumCopy] = field(default_factory=dict)
    anchor_targets: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    num_tokens: Mapping[str, int] = field(default_factory=dict)
    token_dropout: Mapping[str, float] = field(default_factory=dict)
    vocabulary: Sequence[str] = ()
    special: Sequence[int] = ()
    word_vectors: Callable[[], Tensor] = lambda: torch.empty(0, 0)

    def student_copy(self, momentum: float) -> StudentCopy:
        """A copy of the student that follows it; objectives that ask for the same momentum share one."""
        return StudentCopy(self.student, momentum, self.copies)

    def require_fusion(self, kind: str) -> None:
        """`ConfigError` for a student that can't read one modality with another."""
        if getattr(self.student, "fusion", None) is None:
            raise ConfigError(
                f"objective {kind} fuses pairs: give the student some, such as `student.fusion: {{}}`"
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Defaults of an objective's configuration; `weight` multiplies all its parts."""

    weight: NotNegative = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        """The targets that must be in every stream."""
        return ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of them whose width is that of the student's logits."""
        return ()

    @property
    def reads_others(self) -> bool:
        """Whether batches must show each item twice."""
        return False

    @property
    def reads_words(self) -> bool:
        """Whether batches must tell the words of their captions."""
        return False

    def build(self, context: Context) -> Loss:
        """The objective as a module."""
        raise NotImplementedError


class Loss(nn.Module):
    """An objective's module: it owns what it learns (scales, heads) and what it keeps (banks, queues, copies).

    Both are in its `state_dict`, and so in every checkpoint.
    """

    def forward(self, batch: Batch, forward: Forward) -> dict[str, Tensor]:
        """The parts of the loss, float32 scalars, whose sum is the objective; of the batch of all ranks."""
        raise NotImplementedError

    def stepped(self, student: nn.Module) -> None:
        """After each step of the optimizer: a momentum copy moves here."""
