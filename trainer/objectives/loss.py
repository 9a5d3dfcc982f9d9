"""What every objective is: a configuration, and the module that it builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from contract.errors import ConfigError
from trainer.batch import Batch, Forward
from trainer.ranges import NotNegative


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an objective is built for: sizes come from the stores and the student, never from a recipe.

    `student` is the one that is trained: a momentum copy begins as a copy of it. Its tokens are `width` W wide, its
    features and embeddings `embedding_dim` D. `targets` are the shapes of a row of each target, by name; of the
    streams' pairs, `modalities` names each modality once, and `num_places` counts the anchors of all streams.
    """

    student: nn.Module
    width: int
    embedding_dim: int
    modalities: Sequence[str] = ()
    targets: Mapping[str, tuple[int, ...]] | None = None
    num_places: int = 0

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
